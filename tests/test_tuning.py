"""What was found out by measuring is kept, whoever else writes and whoever is killed over it."""

from flamert.ops.cuda.tuning import Choices


def test_a_choice_is_made_once_and_kept(tmp_path):
    path = tmp_path / "deep" / "choices.jsonl"
    one, other = Choices(path), Choices(path)
    assert one.find("a", lambda: "1") == one.find("a", lambda: "2") == "1"
    other.find("b", lambda: "3")
    assert Choices(path).made == {"a": "1", "b": "3"}


def test_broken_lines_cost_themselves_alone(tmp_path):
    path = tmp_path / "choices.jsonl"
    Choices(path).find("a", lambda: "1")
    with open(path, "ab") as file:
        file.write(b'{"not": "a pair"}\n\xff\xfe\n["cut", "of')
    assert Choices(path).made == {"a": "1"}
    Choices(path).find("b", lambda: "2")
    assert Choices(path).made == {"a": "1", "b": "2"}


def test_a_place_that_cannot_be_written_costs_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    choices = Choices(tmp_path / "file" / "choices.jsonl")
    assert choices.find("a", lambda: "1") == choices.find("a", lambda: "2") == "1"
