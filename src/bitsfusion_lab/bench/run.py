"""The whole measurement: one method after the other alone, then their forwards in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from bitsfusion.errors import BitsFusionError
from bitsfusion_lab.bench.bench_file import BenchResult, BenchRow, BenchSettings, Dtype
from bitsfusion_lab.bench.inputs import forward_inputs
from bitsfusion_lab.bench.layers import LayerMeasurement, sqnr_db
from bitsfusion_lab.bench.machine import machine_facts
from bitsfusion_lab.bench.methods import DENSE, OURS, PEERS, method_called
from bitsfusion_lab.bench.methods.base import Method
from bitsfusion_lab.bench.methods.dense import Dense
from bitsfusion_lab.bench.prepared import folder_bytes, prepared_folder
from bitsfusion_lab.bench.process import MethodFailed, WorkerProcess
from bitsfusion_lab.bench.subject import Subject
from bitsfusion_lab.bench.work import Work

REFERENCE = Dense(Dtype.FP32).name

Progress = Callable[[int, int, str], None]


def bench(
    subject: Subject, peers: Sequence[str], settings: BenchSettings, work: Path, progress: Progress | None = None
) -> BenchResult:
    """Measures the dense model, the packed folder and `peers`, each in processes of its own.

    Args:
        subject: see `find_subject`.
        peers: names of `bitsfusion_lab.bench.methods.PEERS`.
        work: folder for what the methods save; what is there from before with the same inputs is used again.
        progress: told how many of how many steps are done and what comes next.

    Raises:
        InputError: a model whose inputs are not known.
        BitsFusionError: the dense model itself could not be measured. Another method that fails is a row that says so.
    """
    inputs = forward_inputs(subject.model_config, step=subject.step, batch=settings.batch, latent=settings.latent)
    hashes = subject.hashes()
    names = list(dict.fromkeys([REFERENCE, Dense(settings.dtype).name, OURS, *peers]))
    measure = _Measurement(
        subject, settings, Work(work, [hashes, inputs.sha256(), settings.model_dump(mode="json")]), hashes
    )
    report = progress or (lambda done, total, note: None)
    rows: dict[str, BenchRow] = {}
    for index, name in enumerate(names):
        report(index, len(names) + 1, name)
        rows[name] = measure.measure_one(name)
        if name in DENSE and rows[name].error is not None:
            raise BitsFusionError(f"{name}: {rows[name].error}")
    report(len(names), len(names) + 1, "forwards in turn")
    for row in measure.in_turn(rows):
        rows[row.name] = row
    report(len(names) + 1, len(names) + 1, "")
    measure.work.finish()
    return BenchResult(
        machine=machine_facts(settings.threads),
        inputs={
            "folder": str(subject.packed),
            "model": str(subject.dense),
            **hashes,
            "step": subject.step,
            "forward_sha256": inputs.sha256(),
        },
        settings=settings,
        not_installed=tuple(name for name, method in PEERS.items() if method.version() is None),
        rows=tuple(rows.values()),
    )


class _Measurement:
    def __init__(self, subject: Subject, settings: BenchSettings, work: Work, hashes: dict[str, str]) -> None:
        self.subject, self.settings, self.work, self.hashes = subject, settings, work, hashes
        self.base = Dense(settings.dtype).name

    def measure_one(self, name: str) -> BenchRow:
        """All of a row but the timed forwards; from the journal where an interrupted run has left it."""
        found = self.work.row(name)
        if found is not None:
            return found
        method = method_called(name)
        empty = BenchRow(name=name, library=method.library, version=method.version(), settings=method.settings)
        try:
            row = empty.model_copy(update=self._measure(method))
        except MethodFailed as error:
            return empty.model_copy(update={"error": str(error)})
        self.work.keep(row)
        return row

    def _measure(self, method: Method) -> dict[str, Any]:
        folder, values = self._folder(method)
        output = self.work.output(method.name)
        with WorkerProcess(method.name, self._dtype(method.name), self.settings.threads) as worker:
            values |= worker.ask("load", folder=str(folder), **self._shape())
            values |= {"peak_rss": worker.ask("forward", output=str(output))["peak_rss"]}
            reference, _ = self._folder(method_called(REFERENCE))
            held = worker.ask("layers", dense=str(reference / "diffusion_pytorch_model.safetensors"))
        values["bytes_on_disk"] = folder_bytes(folder)
        values["bytes_in_memory"] = held["bytes_in_memory"]
        values |= _layer_figures({n: LayerMeasurement(**layer) for n, layer in held["layers"].items()}, self.subject)
        values["bits_on_disk"] = 8 * values["bytes_on_disk"] / values["weights"]
        values["output_error"] = _relative_error(output, self.work.output(REFERENCE))
        values["output_error_dense"] = _relative_error(output, self.work.output(self.base))
        return values

    def in_turn(self, rows: dict[str, BenchRow]) -> list[BenchRow]:
        """Rows with timed forwards. Each group fits into memory, has the dense model in it and goes A B C, A B C."""
        base = rows[self.base]
        groups: list[list[BenchRow]] = []
        room = 0
        for row in rows.values():
            if row is base or row.peak_rss is None:
                continue
            if not groups or room < row.peak_rss:
                groups.append([base])
                room = self.settings.memory_bytes - (base.peak_rss or 0)
            groups[-1].append(row)
            room -= row.peak_rss
        timed: dict[str, BenchRow] = {}
        for group in groups or [[base]]:
            for row in self._time(group):
                timed.setdefault(row.name, row)
        return list(timed.values())

    def _time(self, group: list[BenchRow]) -> list[BenchRow]:
        with ExitStack() as stack:
            workers = {
                row.name: stack.enter_context(WorkerProcess(row.name, self._dtype(row.name), self.settings.threads))
                for row in group
            }
            rounds = self.work.rounds(list(workers))
            errors: dict[str, str] = {}

            def each(work: Callable[[str, WorkerProcess], Any]) -> None:
                for name, worker in workers.items():
                    if name not in errors:
                        try:
                            work(name, worker)
                        except MethodFailed as error:
                            errors[name] = str(error)

            def load(name: str, worker: WorkerProcess) -> None:
                worker.ask("load", folder=str(self._folder(method_called(name))[0]), **self._shape())

            def forward(name: str, worker: WorkerProcess) -> None:
                rounds[-1][name] = worker.ask("forward")["seconds"]

            each(load)
            each(lambda name, worker: worker.ask("forward"))
            while len(rounds) < self.settings.repeats:
                rounds.append({})
                each(forward)
                self.work.keep_rounds(list(workers), rounds)
        return [row.model_copy(update=self._times(row.name, rounds, errors)) for row in group]

    def _times(self, name: str, rounds: list[dict[str, float]], errors: dict[str, str]) -> dict[str, Any]:
        times = [seconds[name] for seconds in rounds if name in seconds]
        ratios = [seconds[name] / seconds[self.base] for seconds in rounds if {name, self.base} <= set(seconds)]
        return {
            "forward_seconds": tuple(times),
            "forward_median": statistics.median(times) if times else None,
            "forward_ratio": statistics.median(ratios) if ratios else None,
            "timed_with": tuple(other for other in (rounds[0] if rounds else {}) if other != name),
            "error": errors.get(name),
        }

    def _folder(self, method: Method) -> tuple[Path, dict[str, Any]]:
        if method.name == OURS:
            return self.subject.packed, {}
        dtype, threads = self._dtype(method.name), self.settings.threads
        return prepared_folder(
            self.work.folder, method, dtype, threads, self.subject.dense, self.hashes["dense_sha256"]
        )

    def _dtype(self, name: str) -> Dtype:
        return DENSE.get(name, self.settings.dtype)

    def _shape(self) -> dict[str, int]:
        return {"step": self.subject.step, "batch": self.settings.batch, "latent": self.settings.latent}


def _layer_figures(layers: dict[str, LayerMeasurement], subject: Subject) -> dict[str, Any]:
    weights = sum(subject.weights.values())
    quantized = sum(layer.weights for layer in layers.values() if layer.quantized)
    dense = sum(layer.weights for layer in layers.values() if not layer.quantized)
    return {
        "weights": weights,
        "weights_quantized": quantized,
        "weights_dense": dense,
        "weights_removed": weights - quantized - dense,
        "dense_layers": sum(not layer.quantized for layer in layers.values()),
        "bits_in_memory": 8 * sum(layer.bytes for layer in layers.values()) / weights,
        "sqnr_db": sqnr_db(sum(layer.signal for layer in layers.values()), sum(x.noise for x in layers.values())),
        "sqnr_db_by_layer": {name: sqnr_db(layer.signal, layer.noise) for name, layer in layers.items()},
    }


def _relative_error(output: Path, reference: Path) -> float | None:
    """|a - b| / |b| of two outputs' files; None before the reference is there or where an output is not finite."""
    if not reference.is_file():
        return None
    a, b = (load_file(path)["output"].double() for path in (output, reference))
    error = float((a - b).norm() / b.norm())
    return error if error == error and error != float("inf") else None
