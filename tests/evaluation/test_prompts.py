import pytest

from bitsfusion.embedded.quick import QUICK
from bitsfusion.embedded.world import TASKS
from bitsfusion.errors import InputError
from bitsfusion.evaluation.prompts import file_prompts, world_prompts


def test_world_prompts_have_a_seed_each():
    prompts = world_prompts(QUICK, "test", 7, 100)
    assert len(prompts.texts) == 42
    assert prompts.seeds == tuple(range(100, 142))
    assert prompts.sha256 != world_prompts(QUICK, "validation", 7, 100).sha256
    head = prompts.chosen(prompts.first_of_each(2))
    assert [prompt.tag for prompt in head.asked] == [tag for tag in TASKS for _ in range(2)]
    assert head.seeds[2] == prompts.seeds[7]


def test_prompt_files(tmp_path):
    (tmp_path / "a.txt").write_text("one cat\n\n two dogs \n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "one cat", "tag": "x"}\n{"prompt": "two dogs"}\n')
    (tmp_path / "a.tsv").write_text('Prompt\tCategory\none cat\tAnimals\ntwo dogs\tAnimals, "and more\n')
    for name in ("a.txt", "a.jsonl", "a.tsv"):
        prompts = file_prompts(tmp_path / name, 5)
        assert prompts.texts == ("one cat", "two dogs")
        assert prompts.seeds == (5, 6)
        assert prompts.check(None) is None


def test_a_line_ends_where_a_line_feed_is(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028cat\r\ntwo dogs".encode())
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\u2028cat"}\n{"prompt": "two dogs"}\n', encoding="utf-8-sig")
    for name in ("a.txt", "a.jsonl"):
        assert file_prompts(tmp_path / name, 0).texts == ("one\u2028cat", "two dogs")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "\n"),
        ("a.jsonl", "{}"),
        ("a.jsonl", "x"),
        ("a.jsonl", '{"prompt": null}'),
        ("a.jsonl", '{"prompt": 3}'),
        ("a.jsonl", '{"prompt": " "}'),
        ("a.json", '[{"caption": null}]'),
        ("a.tsv", "a\tb\nc\td\n"),
        ("missing.txt", None),
    ],
)
def test_bad_prompt_files(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="wanted"):
        file_prompts(tmp_path / name, 0)
