"""The page of a run's report: complete, of one file, and safe whatever the run's texts hold."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from fixtures.reported_run import EVIL, STEPS_PER_ITERATION, Page, sample, write_run
from fixtures.runs import tiny_trainer

from spin_composer.report.outline import RunOutline
from spin_composer.report.page import render
from spin_composer.report.run_files import read_run
from spin_composer.report.samples import as_jsonl
from spin_composer.report.steps import TOKENS_PER_SECOND, read_steps


def page_of(store: Path) -> str:
    return render(read_run(RunOutline(store)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A real run's store, and its page."""
    folder = tmp_path_factory.mktemp("tiny")
    trainer = tiny_trainer(folder, spin={"sample_table_rows": 3}, save_folder=str(folder / "ck"))
    trainer.fit()
    trainer.close()
    return folder / "self-play", page_of(folder / "self-play")


def test_curves_of_a_real_run_have_a_point_per_step(tiny: tuple[Path, str]) -> None:
    store, html = tiny
    steps = sum(TOKENS_PER_SECOND in row.values for row in read_steps(store))
    curves = {one["data-label"]: one for one in Page(html).all("g", class_="curve")}
    assert steps == 36
    for label in ("loss", "accuracy", "margin", "learning rate", "all ranks"):
        assert len(curves[label]["data-x"].split()) == steps, label
        assert len(curves[label]["data-y"].split()) == steps, label
    lines = [len(one["points"].split()) for one in Page(html).all("polyline")]
    assert lines.count(steps) >= 9  # real and generated rewards and log-probs are two curves each
    assert "Precision.FP32" in html


def test_samples_of_a_real_run_are_complete(tiny: tuple[Path, str]) -> None:
    page = Page(tiny[1])
    articles = page.all("article")
    assert [one["data-iteration"] for one in articles] == ["0"] * 3 + ["1"] * 3
    assert all(float(one["data-margin"]) for one in articles)
    for one in read_run(RunOutline(tiny[0])).samples:
        for text in (one.prompt, one.real, one.generated):
            assert text in page.text
    shades = [one["class"].split() for one in page.all("i") if "title" in one]
    assert shades
    assert all(re.fullmatch(r"o\d p\d [ud]\d", " ".join(names)) for names in shades)


def test_a_real_runs_command_settings_and_places_are_there(tiny: tuple[Path, str]) -> None:
    store, text = tiny[0], Page(tiny[1]).text
    for part in ("AdamW", "generation.max_new_tokens", "beta", str(store), "ck", "torch"):
        assert part in text, part


@pytest.mark.parametrize("text", ["blue", EVIL])
def test_nothing_outside_is_referenced(tmp_path: Path, text: str) -> None:
    page = Page(page_of(write_run(tmp_path, text=text)))
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster", "background"):
            assert re.match(r"#|$", attributes.get(name, "")), (tag, attributes)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {t for t, _ in page.elements}
    assert "@import" not in page_of(tmp_path)
    assert "url(" not in page_of(tmp_path)


def test_texts_of_a_run_are_shown_and_never_run(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path, text=EVIL))
    (tmp_path / "report.html").write_bytes(html.encode())
    raw = (tmp_path / "report.html").read_bytes()
    assert b"<script>alert" not in raw
    assert raw.count(b"&lt;script&gt;alert(1)&lt;/script&gt;") > 10
    page = Page(html)
    assert len(page.all("script")) == 1
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    for wanted in (f"say {EVIL}:", f"found {EVIL}", f"do {EVIL}"):
        assert wanted in page.text


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    html = page_of(write_run(tmp_path))
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = Page(html).all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"] == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_half_a_surrogate_pair_does_not_keep_the_page_from_being_written(tmp_path: Path) -> None:
    store = write_run(tmp_path)
    (store / "iter-000/samples.jsonl").write_text(as_jsonl([sample(text="half \ud83d")]))
    assert "half ?" in Page(page_of(store)).text


def test_a_run_of_an_older_version_shows_what_it_has(tmp_path: Path) -> None:
    store = write_run(tmp_path)
    for name in ("steps.jsonl", "run.json"):
        (store / name).unlink()
    for k in range(2):
        old = as_jsonl([sample(k)], with_tokens=False)
        (store / f"iter-00{k}/samples.jsonl").write_text(old)
    page = Page(page_of(store))
    (loss,) = page.all("g", **{"data-label": "loss"})
    assert loss["data-x"] == "1 2"
    assert not [one for one in page.all("i") if "title" in one]
    assert "say blue:" in page.text
    assert "did not keep its settings" in page.text
    assert not page.all("option", value="change")


def test_alarms_have_their_advice(tmp_path: Path) -> None:
    text = Page(page_of(write_run(tmp_path, text="blue"))).text
    assert re.search(r"high_accuracy, iteration 0: found blue\.\s+do blue", text)
    assert "1 alarm." in text


def test_borders_of_iterations_are_marked_in_every_panel(tmp_path: Path) -> None:
    page = Page(page_of(write_run(tmp_path, iterations=3)))
    borders = page.all("g", class_="borders")
    wanted = " ".join(str(k * STEPS_PER_ITERATION) for k in range(3))
    assert borders
    assert {one["data-at"] for one in borders} == {wanted}


def test_every_class_that_a_token_may_have_is_colored() -> None:
    style = (Path(__file__).parents[2] / "spin_composer/report/page.css").read_text()
    for level in range(1, 10):
        for name in (f".by-opponent .o{level}", f".by-policy .p{level}", f".by-change .u{level}",
                     f".by-change .d{level}"):  # fmt: skip
            assert name in style


def test_a_page_reads_itself_again_only_while_it_is_watched(tmp_path: Path) -> None:
    run = read_run(RunOutline(write_run(tmp_path)))
    refresh = {"http-equiv": "refresh"}
    assert [one["content"] for one in Page(render(run, 30)).all("meta", **refresh)] == ["30"]
    assert not Page(render(run)).all("meta", **refresh)
