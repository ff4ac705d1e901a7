"""The sentences say what the numbers say, also when that is not what one hoped."""

import pytest

from jaxdiff.report import findings


def _set(results, name, *, ft_only=None, exclusive=0, shrunk=0, decoupled=0, l0=None, part=None):
    d = results[part or "dictionaries"][name]
    if ft_only is not None:
        d["counts"]["ft_only"] = ft_only
        rest = ft_only - exclusive - shrunk - decoupled
        d["latent_scaling_ft_only"] = {
            "exclusive": exclusive,
            "shrunk": shrunk,
            "decoupled": decoupled,
            "shared": 0,
            "undecided": rest,
        }
    if l0 is not None:
        d["l0"] = l0


def _find(results, start):
    return next(f for f in findings(results) if f.caption.startswith(start))


@pytest.mark.parametrize(
    ("topk", "l1", "words", "expected"),
    [
        (
            20,
            90,
            "L1 calls 4.5 times as many latents fine-tune-only as BatchTopK: 90 against 20",
            True,
        ),
        (20, 30, "but not twice as many: 30 against 20", False),
        (20, 20, "L1 does not call more latents fine-tune-only than BatchTopK", False),
        (30, 20, "L1 does not call more latents fine-tune-only than BatchTopK", False),
        (0, 5, "L1 calls 5 latents fine-tune-only, BatchTopK none", True),
        (0, 0, "Neither BatchTopK nor L1 calls any", False),
    ],
)
def test_counts(results, topk, l1, words, expected):
    _set(results, "batch_topk", ft_only=topk)
    _set(results, "l1", ft_only=l1)
    finding = _find(results, "fine-tune-only\n")
    assert words in finding.text
    assert finding.as_expected is expected
    assert "equal L0" in finding.detail


def test_counts_at_another_l0_do_not_compare(results):
    _set(results, "batch_topk", ft_only=20, l0=12.0)
    _set(results, "l1", ft_only=90, l0=20.0)
    finding = _find(results, "fine-tune-only\n")
    assert "not at equal L0 (BatchTopK 12.0, L1 20.0" in finding.detail
    assert finding.as_expected is False


@pytest.mark.parametrize(
    ("shrunk", "decoupled", "words", "expected"),
    [
        (40, 30, "rejects most of L1's fine-tune-only latents: 70 of 90", True),
        (5, 5, "does not reject most of L1's fine-tune-only latents: 10 of 90", False),
        (0, 0, "rejects none of L1's fine-tune-only latents: 0 of 90", False),
    ],
)
def test_rejected(results, shrunk, decoupled, words, expected):
    _set(results, "l1", ft_only=90, shrunk=shrunk, decoupled=decoupled)
    _set(results, "batch_topk", ft_only=20, exclusive=20)
    finding = _find(results, "fine-tune-only rejected")
    assert words in finding.text and "BatchTopK's, 0 of 20" in finding.text
    assert finding.as_expected is expected


@pytest.mark.parametrize(("count", "clean"), [(0, True), (2, True), (12, False)])
def test_null(results, count, clean):
    for name in ("batch_topk", "l1"):
        _set(results, name, ft_only=30)
        _set(results, name, ft_only=0, part="null")
    _set(results, "batch_topk", ft_only=count, exclusive=count, part="null")
    finding = _find(results, "fine-tune-only, null pair")
    assert f"BatchTopK calls {count} fine-tune-only ({count} exclusive)" in finding.text
    assert ("next to nothing is found" in finding.text) is clean
    assert finding.as_expected is clean


def test_behaviours(results):
    for name, found in (("batch_topk", 7), ("l1", 3)):
        rows = [r for r in results["dictionaries"][name]["truth"] if r["kind"] == "new"]
        for i, row in enumerate(rows):
            row["found"] = i < found
    finding = _find(results, "behaviours found")
    assert finding.text == "BatchTopK finds 7 of 8 planted behaviours; L1 finds 3 of 8."
    assert "BatchTopK misses language." in finding.detail


@pytest.mark.parametrize(
    ("verdict", "auroc", "taken"),
    [("exclusive", 0.95, 1), ("exclusive", 0.8, 0), ("shared", 0.95, 0)],
)
def test_gain_taken_for_new(results, verdict, auroc, taken):
    rows = [r for d in results["dictionaries"].values() for r in d["truth"] if r["kind"] == "gain"]
    for row in rows:
        row["best_any"] = {"latent": 1, "verdict": "shared", "auroc": 0.99, "relative_norm": 0.5}
    rows[0]["best_any"] |= {"verdict": verdict, "auroc": auroc}
    finding = _find(results, "of 2 taken for new")
    assert ("BatchTopK takes 1 for new" in finding.text) == bool(taken)
    assert finding.as_expected is not bool(taken)


def test_one_dictionary_and_no_truth(results):
    del results["dictionaries"]["l1"]
    results |= {"behaviours": [], "null": None, "null_pair": None}
    results["dictionaries"]["batch_topk"]["truth"] = []
    _set(results, "batch_topk", ft_only=20, exclusive=18)
    (finding,) = findings(results)
    assert "confirms as exclusive 18 of BatchTopK's 20 fine-tune-only latents" in finding.text


def test_no_dictionary(results):
    assert findings(results | {"dictionaries": {}, "null": None}) == []
