"""Evaluation figures against hand-counted cases, scikit-learn and SciPy; reading of cases; the table."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import label_ranking_average_precision_score, precision_score, recall_score, top_k_accuracy_score

from training.cases import Case, load_cases, parse_cases
from training.errors import CasesInvalid, SearcherBroken
from training.evaluate import (
    RankedAnswer,
    evaluate,
    measure,
    rank_of_right,
    render,
    wilson_interval,
)

A, B, C = "3A24401", "3B56789", "3C12345"


def case(*accept: str, slice_: str = "all", query: str = "q") -> Case:
    return Case(query, frozenset(accept), slice_)


class TestRankOfRight:
    def test_first_of_several_right_ids_counts(self) -> None:
        assert rank_of_right(case(B, C), RankedAnswer((A, B, C))) == 2

    def test_nothing_right_is_none(self) -> None:
        assert rank_of_right(case(C), RankedAnswer((A, B))) is None

    def test_an_abstention_offers_nothing_even_with_ids(self) -> None:
        assert rank_of_right(case(A), RankedAnswer((A,), abstained=True)) is None

    @pytest.mark.parametrize("answer", [RankedAnswer((), abstained=True), RankedAnswer((A,), True), RankedAnswer(())])
    def test_abstaining_is_right_where_nothing_is_accepted(self, answer: RankedAnswer) -> None:
        assert rank_of_right(case(), answer) == 1

    def test_any_guess_is_wrong_where_nothing_is_accepted(self) -> None:
        assert rank_of_right(case(), RankedAnswer((A,))) is None


def test_figures_counted_by_hand() -> None:
    cases = [case(A), case(A), case(A), case(A), case(), case()]
    answers = [
        RankedAnswer((A, B)),  # right at 1
        RankedAnswer((B, A)),  # right at 2
        RankedAnswer((B, C, A)),  # right at 3, beyond k
        RankedAnswer((A,), abstained=True),  # abstained wrongly
        RankedAnswer((), abstained=True),  # abstained rightly
        RankedAnswer((A,)),  # guessed wrongly
    ]
    m = measure(cases, answers, k=2)
    assert (m.count, m.abstained) == (6, 2)
    assert m.accuracy == pytest.approx(2 / 6)
    assert m.success_at_k == pytest.approx(3 / 6)
    assert m.mrr_at_k == pytest.approx((1 + 1 / 2 + 1) / 6)
    assert m.abstention_precision == pytest.approx(1 / 2)
    assert m.abstention_recall == pytest.approx(1 / 2)


def test_abstention_figures_are_none_where_undefined() -> None:
    m = measure([case(A)], [RankedAnswer((A,))], k=1)
    assert m.abstention_precision is None
    assert m.abstention_recall is None


@pytest.mark.parametrize("seed", range(5))
def test_ranking_figures_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, count, k = 12, 80, 4
    scores = rng.permuted(np.tile(np.arange(items, dtype=float), (count, 1)), axis=1)
    truth = rng.integers(items, size=count)
    cases = [case(str(t)) for t in truth]
    answers = [RankedAnswer(tuple(str(i) for i in np.argsort(-row))) for row in scores]
    labels = np.arange(items)
    everything, cut = measure(cases, answers, k=items), measure(cases, answers, k=k)
    relevance = np.eye(items, dtype=int)[truth]
    assert everything.mrr_at_k == pytest.approx(label_ranking_average_precision_score(relevance, scores))
    assert cut.accuracy == pytest.approx(top_k_accuracy_score(truth, scores, k=1, labels=labels))
    assert cut.success_at_k == pytest.approx(top_k_accuracy_score(truth, scores, k=k, labels=labels))


@pytest.mark.parametrize("seed", range(5))
def test_abstention_figures_agree_with_scikit_learn(seed: int) -> None:
    rng = Random(seed)
    wanted = [rng.random() < 0.3 for _ in range(100)]
    silent = [rng.random() < 0.4 for _ in range(100)]
    cases = [case() if w else case(A) for w in wanted]
    m = measure(cases, [RankedAnswer((A,), abstained=s) for s in silent], k=3)
    assert m.abstention_precision == pytest.approx(precision_score(wanted, silent))
    assert m.abstention_recall == pytest.approx(recall_score(wanted, silent))


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (1, 3), (48, 50), (50, 50), (333, 700)])
def test_wilson_interval_agrees_with_scipy(successes: int, count: int) -> None:
    known = binomtest(successes, count).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(successes, count) == pytest.approx((known.low, known.high), abs=1e-9)


def test_wilson_interval_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


class TestEvaluate:
    CASES = (case(A, slice_="typo", query="a"), case(B, slice_="exact", query="b"), case(slice_="typo", query="?"))

    @staticmethod
    def ask(queries: object) -> list[RankedAnswer]:
        known = {"a": RankedAnswer((B, A)), "b": RankedAnswer((B,)), "?": RankedAnswer((C,), abstained=True)}
        return [known[q] for q in queries]  # type: ignore[attr-defined]

    @pytest.mark.parametrize("batch", [1, 2, 64])
    def test_batches_do_not_change_the_report(self, batch: int) -> None:
        sizes: list[int] = []

        def ask(queries: object) -> list[RankedAnswer]:
            sizes.append(len(queries))  # type: ignore[arg-type]
            return self.ask(queries)

        report = evaluate(ask, self.CASES, k=2, batch=batch)
        assert max(sizes) <= batch
        assert sum(sizes) == 3
        assert report.overall.accuracy == pytest.approx(2 / 3)
        assert {name: m.accuracy for name, m in report.slices.items()} == {"typo": 0.5, "exact": 1.0}
        assert {name: m.count for name, m in report.slices.items()} == {"typo": 2, "exact": 1}

    def test_failures_list_what_was_wrong_at_rank_one(self) -> None:
        (failure,) = evaluate(self.ask, self.CASES, k=2).failures
        assert (failure.query, failure.accept, failure.answered, failure.abstained) == ("a", (A,), (B, A), False)

    def test_progress_ends_at_the_number_of_cases(self) -> None:
        seen: list[tuple[int, int]] = []
        evaluate(self.ask, self.CASES, k=2, batch=2, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(2, 3), (3, 3)]

    def test_a_missing_answer_is_an_error(self) -> None:
        with pytest.raises(SearcherBroken, match="asked 3 queries, got 2 answers"):
            evaluate(lambda queries: self.ask(queries)[:-1], self.CASES)

    @pytest.mark.parametrize(("k", "batch"), [(0, 1), (1, 0)])
    def test_k_and_batch_are_at_least_one(self, k: int, batch: int) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            evaluate(self.ask, self.CASES, k=k, batch=batch)

    def test_to_json_survives_a_round_trip(self) -> None:
        report = evaluate(self.ask, self.CASES, k=2)
        back = json.loads(json.dumps(report.to_json()))
        assert back["k"] == 2
        assert list(back["slices"]) == ["typo", "exact"]
        assert back["overall"]["accuracy_interval"] == pytest.approx(list(report.overall.accuracy_interval))

    def test_render_has_a_line_per_slice_and_one_for_all(self) -> None:
        lines = render(evaluate(self.ask, self.CASES, k=2), "wine-orders, rules").splitlines()
        assert lines[0] == "wine-orders, rules"
        rows = {line.split()[0]: line.split() for line in lines[1:] if not line.startswith("-")}
        assert rows["typo"][1:3] == ["2", "50.0"]
        assert rows["exact"][-2:] == ["-", "-"]
        assert rows["typo"][-6:-2] == ["100.0", "0.750", "0.750", "0.815"]
        assert rows["all"][1:3] == ["3", "66.7"]
        assert len({len(line) for line in lines[1:]}) == 1


class TestLoadCases:
    GOOD = '{"query": "레이크 찰리스", "accept": ["3A24401"], "slice": "exact_ko", "quantity": 24, "vintage": null}'

    def test_reads_a_file_and_skips_blank_lines(self, tmp_path: Path) -> None:
        (tmp_path / "cases.jsonl").write_text(f'{self.GOOD}\n\n{{"query": "x", "accept": []}}\n', encoding="utf-8")
        first, second = load_cases("cases.jsonl", tmp_path)
        assert first == Case("레이크 찰리스", frozenset({"3A24401"}), "exact_ko", 24, None)
        assert second == Case("x", frozenset())

    def test_runs_a_script_with_its_arguments_in_its_own_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "app" / "evaluation"
        folder.mkdir(parents=True)
        (folder / "beside.txt").write_text("옆", encoding="utf-8")
        (folder / "cases.py").write_text(
            "import json, sys\n"
            "text = open('beside.txt', encoding='utf-8').read() + sys.argv[1]\n"
            "sys.stdout.buffer.write((json.dumps({'query': text, 'accept': []}, ensure_ascii=False) + '\\n').encode())",
            encoding="utf-8",
        )
        (only,) = load_cases("evaluation/cases.py 'a b'", tmp_path / "app")
        assert only.query == "옆a b"

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ("{nonsense", "not JSON"),
            ("[1]", "a JSON object, not list"),
            ('{"accept": []}', "`query`"),
            ('{"query": "  ", "accept": []}', "`query`"),
            ('{"query": "x"}', "`accept`"),
            ('{"query": "x", "accept": "3A24401"}', "`accept`"),
            ('{"query": "x", "accept": [1]}', "`accept`"),
            ('{"query": "x", "accept": [], "slice": 3}', "`slice`"),
            ('{"query": "x", "accept": [], "quantity": "24"}', "`quantity`"),
            ('{"query": "x", "accept": [], "vintage": true}', "`vintage`"),
            ('{"query": "x", "accept": [], "record": []}', "`record`"),
        ],
    )
    def test_a_bad_line_is_named_with_file_and_line(self, tmp_path: Path, line: str, complaint: str) -> None:
        (tmp_path / "cases.jsonl").write_text(f"{self.GOOD}\n{line}\n", encoding="utf-8")
        with pytest.raises(CasesInvalid, match=r"cases\.jsonl, line 2: ") as caught:
            load_cases("cases.jsonl", tmp_path)
        assert complaint in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CasesInvalid, match=r"no evaluation source .*nowhere\.jsonl"):
            load_cases("nowhere.jsonl", tmp_path)

    def test_arguments_are_for_scripts(self, tmp_path: Path) -> None:
        (tmp_path / "cases.jsonl").write_text(self.GOOD, encoding="utf-8")
        with pytest.raises(CasesInvalid, match=r"only a \.py script takes arguments"):
            load_cases("cases.jsonl --seed 7", tmp_path)

    def test_a_file_that_is_not_text_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "cases.jsonl").write_bytes(b"\xff\xfe")
        with pytest.raises(CasesInvalid, match="not UTF-8"):
            load_cases("cases.jsonl", tmp_path)

    def test_a_failing_script_shows_its_complaint(self, tmp_path: Path) -> None:
        (tmp_path / "cases.py").write_text("raise SystemExit('no catalogue here')", encoding="utf-8")
        with pytest.raises(CasesInvalid, match=r"cases\.py ended with 1: no catalogue here"):
            load_cases("cases.py", tmp_path)

    def test_a_script_that_hangs_is_stopped(self, tmp_path: Path) -> None:
        (tmp_path / "cases.py").write_text("import time; time.sleep(600)", encoding="utf-8")
        with pytest.raises(CasesInvalid, match="was stopped"):
            load_cases("cases.py", tmp_path, limit_s=0.5)

    @pytest.mark.parametrize("text", ["", "\n \n"])
    def test_no_cases_are_an_error(self, text: str) -> None:
        with pytest.raises(CasesInvalid, match="holds no cases"):
            parse_cases(text, "here")

    def test_an_empty_source_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(CasesInvalid, match="is empty"):
            load_cases("  ", tmp_path)
