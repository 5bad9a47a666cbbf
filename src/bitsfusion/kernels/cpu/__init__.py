"""The CPU kernels: C++ with vector instructions chosen at run time, built with the package if there is a compiler."""
