import pytest

from bitsfusion.errors import InputError
from bitsfusion.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    yield folder
    folder.close()


def maker(run, text, log):
    def work():
        log.append(text)
        (run.path / "a.txt").write_text(text)

    return work


def test_a_step_is_done_once(run):
    log = []
    assert run.step("a", {"x": 1}, ["a.txt"], maker(run, "one", log))
    assert not run.step("a", {"x": 1}, ["a.txt"], maker(run, "two", log))
    assert log == ["one"]
    assert list(run.made("a")) == ["a.txt"]


def test_other_inputs_and_touched_outputs_run_it_again(run):
    log = []
    run.step("a", {"x": 1}, ["a.txt"], maker(run, "one", log))
    assert run.step("a", {"x": 2}, ["a.txt"], maker(run, "two", log))
    (run.path / "a.txt").write_text("edited")
    assert run.step("a", {"x": 2}, ["a.txt"], maker(run, "three", log))
    (run.path / "a.txt").unlink()
    assert run.step("a", {"x": 2}, ["a.txt"], maker(run, "four", log))
    assert log == ["one", "two", "three", "four"]


def test_an_interrupted_step_goes_on_only_with_the_same_inputs(run):
    def broken():
        (run.path / "part").write_text("half")
        raise KeyboardInterrupt

    seen = []

    def work():
        seen.append((run.path / "part").exists())
        (run.path / "part").write_text("whole")

    for inputs in ({"x": 1}, {"x": 1}, {"x": 2}):
        with pytest.raises(KeyboardInterrupt):
            run.step("b", {"x": 1}, ["part"], broken)
        run.step("b", inputs, ["part"], work)
        (run.path / "steps" / "b.json").unlink()
        (run.path / "part").unlink()
    assert seen == [True, True, False]


def test_one_process_at_a_time(run):
    with pytest.raises(InputError, match="another process is working"):
        RunFolder(run.path)
    run.close()
    RunFolder(run.path).close()


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="got a file"):
        RunFolder(tmp_path / "file")
