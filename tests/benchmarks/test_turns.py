"""Who makes how many calls of a measure."""

from benchmarks.runs import MEASURES


def test_realtime_makes_its_most_beside_the_greatest_number() -> None:
    turns = MEASURES["create"].turns([1_000, 10_000, 50_000], ["this", "realtime"])

    assert turns == [
        [("this", 50_000), ("realtime", 5_000)],
        [("this", 10_000)],
        [("this", 1_000), ("realtime", 1_000)],
    ]


def test_a_greater_number_than_enough_is_cut() -> None:
    assert MEASURES["create"].turns([10_000], ["realtime"]) == [[("realtime", 5_000)]]
    assert MEASURES["large"].turns([10_000, 50_000], ["this"]) == [[("this", 1_000)]]
