// Work in parts on several threads: those of torch's OpenMP runtime where it is loaded, otherwise fresh ones.
//
// A pool of our own would have to share the cores with OpenMP's workers, which spin for a while after each of torch's
// operations; joining their team costs a wake-up at most. Nothing is linked: the one entry point needed is looked up.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace bitsfusion {

using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline std::atomic<bool>& forked() {
    static std::atomic<bool> flag{false};
    return flag;
}

#if defined(_WIN32)
// The OpenMP of torch has no such entry point there.
inline Team team() { return nullptr; }
#else
// OpenMP's workers do not survive a fork, and its runtime does not know that they are gone.
inline Team team() {
    static const Team found = [] {
        pthread_atfork(nullptr, nullptr, [] { forked() = true; });
        return reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    }();
    return forked() ? nullptr : found;
}
#endif

// Calls body(part) for every part from 0 to parts - 1, on `threads` threads at most; returns when all are done.
template <class Body>
void parallel(int64_t parts, int threads, const Body& body) {
    struct Work {
        const Body& body;
        int64_t parts;
        std::atomic<int64_t> next;
    } work{body, parts, {0}};
    auto run = [](void* data) {
        auto& mine = *static_cast<Work*>(data);
        for (int64_t part; (part = mine.next.fetch_add(1)) < mine.parts;) mine.body(part);
    };
    if (threads > parts) threads = static_cast<int>(parts);
    if (threads <= 1) {
        run(&work);
    } else if (Team start = team()) {
        start(run, &work, static_cast<unsigned>(threads), 0);
    } else {
        std::vector<std::thread> others;
        others.reserve(threads - 1);
        try {
            while (static_cast<int>(others.size()) < threads - 1) others.emplace_back(run, &work);
        } catch (const std::system_error&) {
            // No more threads to be had: those that there are do the work.
        }
        run(&work);
        for (auto& other : others) other.join();
    }
}

}  // namespace bitsfusion
