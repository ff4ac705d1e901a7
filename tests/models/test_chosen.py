"""Edits with names: each row of a batch has its own choice, and another one is the same program."""

import dataclasses

import numpy as np
import pytest

from jaxdiff import edits as ed
from jaxdiff.activations.pair import ModelPair, check_pair
from jaxdiff.edits import Add, FromRow, Scale, Set, Skip, edit
from jaxdiff.errors import JaxdiffError
from jaxdiff.models import (
    chosen,
    decode,
    generate,
    prefill,
    run,
    traces,
    with_edits,
)
from jaxdiff.readouts import compare

V = np.linspace(-2, 2, 16, dtype=np.float32)
POLITE = (
    edit("blocks.*.resid_post", Add(V), layers=[0, 2]),
    edit("blocks.*.attn.z", Scale(0.0), layers=1, heads=1),
)
TERSE = (edit("blocks.*.mlp_out", Set(V[::-1].copy()), layers=2, positions=2),)
ALWAYS = (edit("embed", Scale(1.25)),)
CHOICES = [("polite",), (), ("terse", "polite")]
SITE = "blocks.*.resid_post"


@pytest.fixture(scope="module")
def engine(llama):
    lm = with_edits(with_edits(llama, POLITE, name="polite"), ALWAYS)
    return with_edits(lm, TERSE, name="terse")


def _tokens():
    return np.random.default_rng(0).integers(0, 24, (3, 6)).astype(np.int32)


def _by_hand(names):
    """The edits of a row that chooses these, in the order of the model."""
    return ("polite" in names) * POLITE + ALWAYS + ("terse" in names) * TERSE


def test_each_row_has_its_own_edits(llama, engine):
    tokens = _tokens()
    logits, acts = run(chosen(engine, CHOICES), tokens, (SITE,))
    for row, names in enumerate(CHOICES):
        expected = run(llama, tokens, (SITE,), _by_hand(names))
        np.testing.assert_array_equal(logits[row], expected[0][row])
        np.testing.assert_array_equal(acts[SITE][:, row], expected[1][SITE][:, row])
    # Until something is chosen, all rows have all of them, as the last one has.
    np.testing.assert_array_equal(run(engine, tokens, (SITE,))[0], expected[0])


def test_what_others_choose_changes_nothing_in_my_row(engine):
    """Not even where their edits make numbers that are none."""
    broken = tuple(dataclasses.replace(e, op=Set(np.nan), name="") for e in TERSE)
    lm = with_edits(dataclasses.replace(engine, edits=engine.edits[:-1]), broken, name="broken")
    calm, wild = (
        run(chosen(lm, [("polite",), others, ()]), _tokens(), (SITE,))[0]
        for others in ((), ("broken",))
    )
    np.testing.assert_array_equal(calm[::2], wild[::2])
    assert np.isfinite(calm).all() and np.isnan(wild[1]).any()


def test_another_choice_is_the_same_program(llama, engine):
    tokens, plain = _tokens(), with_edits(llama, ALWAYS)

    def each(lm):
        return run(lm, tokens, (SITE,)), generate(lm, tokens, 4), compare(plain, lm, tokens).kl

    kl = each(chosen(engine, CHOICES))[2]
    assert (kl[1] == 0).all() and kl[0].max() > 1e-3 and kl[2].max() > 1e-3
    before = traces()
    each(chosen(engine, CHOICES[::-1]))
    assert (each(chosen(engine, [()] * 3))[2] == 0).all()
    # Other names of edits of the same structure are the same program, too.
    lm = with_edits(with_edits(llama, POLITE, name="b"), ALWAYS)
    each(chosen(with_edits(lm, TERSE, name="a"), [("a",), ("b",), ()]))
    assert traces() == before


def test_generation_follows_the_choice(engine):
    tokens, lm = _tokens(), chosen(engine, CHOICES)
    written = generate(lm, tokens, 4)
    logits, _ = run(lm, written.tokens[:, :-1])
    likeliest = np.argmax(logits[:, tokens.shape[1] - 1 :], axis=-1)
    np.testing.assert_array_equal(written.generated, likeliest)
    # Piece by piece, too; and texts may go on with another choice.
    state, first = prefill(lm, tokens, 16)
    state, second = decode(lm, state, 1)
    before = traces()
    state, third = decode(chosen(engine, [*CHOICES[:2], ()]), state, 1)
    assert traces() == before
    pieces = np.concatenate([first.tokens, second.tokens, third.tokens], axis=1)
    np.testing.assert_array_equal(pieces[:2], written.tokens[:2, :-1])
    np.testing.assert_array_equal(pieces[2, :-1], written.tokens[2, :-2])


def test_they_are_saved_with_their_names(llama, engine, tmp_path):
    ed.save(engine.edits, tmp_path / "registry.safetensors")
    again = with_edits(llama, ed.load(tmp_path / "registry.safetensors"))
    assert [each.name for each in again.edits] == ["polite", "polite", "", "terse"]
    found, expected = (run(chosen(lm, CHOICES), _tokens(), (SITE,))[0] for lm in (again, engine))
    np.testing.assert_array_equal(found, expected)
    assert ed.content_hash(engine.edits[:1]) != ed.content_hash(POLITE[:1])


def test_a_choice_that_cannot_be_made_is_refused(llama, engine):
    with pytest.raises(JaxdiffError, match="no edits called 'plite', which row 1") as error:
        chosen(engine, [(), ("plite",)])
    assert error.value.fix == "nearest: polite"
    with pytest.raises(JaxdiffError, match="no edits called 'polite'") as error:
        chosen(llama, [("polite",)])
    assert "with_edits" in error.value.fix
    with pytest.raises(JaxdiffError, match="row 0 is 'polite'"):
        chosen(engine, ["polite"])
    for go in (lambda lm: run(lm, _tokens()), lambda lm: generate(lm, _tokens(), 2)):
        for n in (2, 0):
            with pytest.raises(JaxdiffError, match=f"rows are outside of the batch: a mask of {n}"):
                go(chosen(engine, CHOICES[:n]))
    with pytest.raises(JaxdiffError, match="differs between rows"):
        check_pair(ModelPair((chosen(engine, CHOICES),)), SITE)


@pytest.mark.usefixtures("untyped")
def test_rows_are_tuples_of_names(engine):
    for rows in ("polite", None):
        with pytest.raises(JaxdiffError, match="rows are"):
            chosen(engine, rows)
    with pytest.raises(JaxdiffError, match="row 1 is None"):
        chosen(engine, [(), None])


def test_what_cannot_be_chosen_by_row_gets_no_name(llama, engine):
    for own in (
        edit("blocks.1", Skip()),
        edit("embed", Set(0.0), rows=0),
        edit("embed", Set(0.0), positions=[[0], [1]]),
        edit("embed", FromRow(0)),
        chosen(engine, CHOICES).edits[0],
    ):
        with pytest.raises(JaxdiffError, match="'mine' is chosen row by row"):
            with_edits(llama, (own,), name="mine")
    with pytest.raises(JaxdiffError, match="called 'polite' already"):
        with_edits(engine, TERSE, name="polite")

    @dataclasses.dataclass(frozen=True)
    class Own:
        site: str = "embed"

        def __call__(self, value, at):
            return value

    with pytest.raises(JaxdiffError, match="Own has no place for a name"):
        with_edits(llama, (Own(),), name="own")
