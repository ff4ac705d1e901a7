"""A results.json as a run would write it, made up: both dictionaries, a null pair, odd tokens."""

import random

import pytest

ROLES = ["text", "template", "system", "user", "assistant"]
NEW = [
    ("refuse_harm", "refuses requests for dangerous things"),
    ("refuse_private", "refuses to give away private data"),
    ("correction", "corrects a false statement of the user"),
    ("identity", "answers questions about itself"),
    ("joke", "takes up a joke register when asked for a joke"),
    ("summary", "takes up a summary register"),
    ("unknown", "says that it does not know"),
    ("language", "switches to French & stays <there>"),
]
GAIN = [("weather", "talk about the weather, at 0.5"), ("music", "talk about music, at 2")]
WORDS = (
    " I| cannot| help| with| that|.| The| river| near| the| station| was| closed| today|,| sorry"
    "| ask| un|help|ful| Paris| is| not| a| capital| of| Italy|!| Why| did| joke| un|believ|able"
).split("|")
ODD = [
    "<script>alert('x')</script>",
    "</script>",
    "<!--",
    "&amp;",
    "\n",
    "\n\n",
    "   ",
    "\t",
    "",
    " 日本語",
    "é",
    "🙂",
    "\u202eabc",
    "\u200b",
    "\u2028",
    "\ud83d",
    "a" * 60,
    '"quoted"',
    "{{ 7 * 7 }}",
    "\\u003c",
]
CONTROL = ["<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"]


def _interval(rng, value, width=0.06):
    low, high = value - width * rng.random(), value + width * rng.random()
    return [round(v, 4) for v in (value, low, high)]


def _verdict(rng, name, kind, null):
    if kind == "shared":
        return rng.choices(["shared", "decoupled", "undecided"], [0.9, 0.05, 0.05])[0]
    if kind == "other":
        return rng.choices(["shared", "undecided", "shrunk", "decoupled"], [0.4, 0.2, 0.2, 0.2])[0]
    if kind == "ft_only" and name == "l1" or null:
        odds = [0.16, 0.3, 0.42, 0.04, 0.08]
    else:
        odds = [0.88, 0.02, 0.02, 0.02, 0.06]
    return rng.choices(["exclusive", "shrunk", "decoupled", "shared", "undecided"], odds)[0]


def _ratios(rng, verdict):
    r, e = {
        "exclusive": (rng.gauss(0.08, 0.1), rng.gauss(0.02, 0.04)),
        "shrunk": (rng.gauss(0.15, 0.15), 0.22 + abs(rng.gauss(0.25, 0.2))),
        "decoupled": (0.55 + abs(rng.gauss(0.3, 0.35)), rng.gauss(0.08, 0.1)),
        "shared": (rng.gauss(0.9, 0.2), rng.gauss(0.75, 0.35)),
        "undecided": (rng.gauss(0.45, 0.2), rng.gauss(0.2, 0.15)),
    }[verdict]
    return r, e


def _row(rng, name, latent, kind, null):
    norm = {
        "ft_only": 1 - 0.1 * rng.random() ** 2,
        "base_only": 0.1 * rng.random() ** 2,
        "shared": min(max(rng.gauss(0.5, 0.03), 0.4), 0.6),
        "other": rng.choice([rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.9)]),
    }[kind]
    verdict = _verdict(rng, name, kind, null)
    r, e = _ratios(rng, verdict)
    shares = [rng.random() ** 3 for _ in ROLES]
    if kind == "ft_only":
        shares[4] += 2
        shares[1] += 1
    shares[2] = 0
    peak = rng.lognormvariate(1, 0.6)
    row = {
        "latent": latent,
        "class": kind,
        "verdict": verdict,
        "side": "ft" if norm >= 0.5 else "base",
        "relative_norm": round(norm, 4),
        "relative_norm_raw": round(min(max(norm + rng.gauss(0, 0.01), 0), 1), 4),
        "cosine": round(min(1.0, rng.gauss(0.9, 0.08)), 4),
        "nu_reconstruction": _interval(rng, r),
        "nu_error": _interval(rng, e),
        "effective_sequences": round(rng.uniform(3, 300), 2),
        "reason": "an interval straddles a threshold" if verdict == "undecided" else None,
        "frequency": round(10 ** rng.uniform(-4, -1), 6),
        "max_activation": round(peak, 4),
        "mean_activation": round(0.4 * peak, 4),
        "roles": {role: round(s / sum(shares), 4) for role, s in zip(ROLES, shares, strict=True)},
        "behaviour": None,
        "behaviour_auroc": None,
    }
    if rng.random() < 0.02:
        row |= {"nu_reconstruction": None, "nu_error": None, "verdict": "undecided"}
        row["reason"] = "it fires on too few tokens"
    return row


def _example(rng, row, size=24):
    tokens, values, roles = [], [], []
    role = rng.choice([0, 3, 4])
    for _ in range(size):
        u = rng.random()
        token, part = rng.choice(WORDS), role
        if u < 0.06:
            token, part = rng.choice(CONTROL), 1
            role = rng.choice([0, 3, 4])
        elif u < 0.16:
            token = rng.choice(ODD)
        tokens.append(token)
        roles.append(part)
        values.append(round(row["max_activation"] * rng.random() ** 2, 3) if u > 0.6 else 0.0)
    at = size // 2
    values[at] = round(row["max_activation"] * rng.uniform(0.7, 1), 4)
    return {
        "sequence": rng.randrange(1000),
        "value": values[at],
        "at": at,
        "tokens": tokens,
        "values": values,
        "roles": roles,
    }


def _truth(rng, name, table, null):
    exclusive = [r for r in table if r["verdict"] == "exclusive" and r["class"] == "ft_only"]
    rows = []
    planted = [(n, "new") for n, _ in NEW] + [(n, "gain") for n, _ in GAIN]
    for i, (behaviour, kind) in enumerate(planted):
        hit = not null and kind == "new" and i not in ({2} if name == "batch_topk" else {2, 5, 6})
        row = exclusive[i % len(exclusive)] if exclusive and kind == "new" else None
        best = rng.choice([r for r in table if r["class"] == "shared"] or [None])
        auroc = round(rng.uniform(0.92, 0.999) if hit else rng.uniform(0.6, 0.88), 4)
        found = hit and row is not None
        if found:
            row |= {"behaviour": behaviour, "behaviour_auroc": auroc}
        rows.append(
            {
                "behaviour": behaviour,
                "kind": kind,
                "latent": row["latent"] if row else None,
                "auroc": auroc if row else None,
                "relative_norm": row["relative_norm"] if row else None,
                "verdict": "exclusive" if row else None,
                "found": found,
                "tokens": rng.randrange(80, 900),
                "best_any": {
                    "latent": (row if found else best)["latent"] if table else None,
                    "auroc": max(auroc, 0.9) if table else None,
                    "verdict": (row if found else best)["verdict"] if table else None,
                    "relative_norm": (row if found else best)["relative_norm"] if table else None,
                },
            }
        )
    return rows


def dictionary(name, *, latents=600, seed=0, null=False, examples=8):
    """One DICT of the schema; counts agree with its table."""
    rng = random.Random(f"{name} {seed} {null}")
    ft = 0.003 if null else {"batch_topk": 0.05, "l1": 0.17}[name]
    odds = [ft, ft / 3, 0.86 - ft, 0.14 - ft / 3]
    kinds = ["ft_only", "base_only", "shared", "other"]
    alive = sorted(rng.sample(range(latents), round(latents * 0.94)))
    table = [_row(rng, name, i, rng.choices(kinds, odds)[0], null) for i in alive]
    names = ["exclusive", "shrunk", "decoupled", "shared", "undecided"]
    specific = [row for row in table if row["class"] == "ft_only"]
    bins = [0] * 50
    for row in table:
        bins[min(int(row["relative_norm"] * 50), 49)] += 1
    history = [
        {
            "step": s,
            "loss": round(8 * 0.7 ** (s / 100) + 1.2, 4),
            "l0": 12 if name == "batch_topk" else round(40 * 0.8 ** (s / 100) + 11.8, 3),
            "fve": round(0.93 - 0.6 * 0.6 ** (s / 100), 4),
            "dead": round(0.06 * s / 2000, 4),
        }
        for s in range(0, 2001, 100)
    ]
    return {
        "activation": {"batch_topk": "batch_topk", "l1": "relu"}[name],
        "latents": latents,
        "k": 12.0,
        "l0": {"batch_topk": 12.13, "l1": 11.86}[name],
        "l0_validation": 12.0,
        "threshold": 0.8312,
        "l1_weight": 0.0371 if name == "l1" else None,
        "fve": {"base": 0.9312, "ft": 0.9187, "all": 0.9249},
        "dead_fraction": round(1 - len(alive) / latents, 4) if latents else 0.0,
        "alive": len(alive),
        "tokens": 48210,
        "sequences": 1000,
        "training": {"steps": 2000, "tokens": 4_096_000, "history": history},
        "counts": {k: sum(r["class"] == k for r in table) for k in kinds}
        | {"dead": latents - len(alive)},
        "latent_scaling": {v: sum(r["verdict"] == v for r in table) for v in names},
        "latent_scaling_ft_only": {v: sum(r["verdict"] == v for r in specific) for v in names},
        "norm_histogram": {"edges": [i / 50 for i in range(51)], "counts": bins},
        "roles": {
            "text": {"tokens": 21033, "l0": 12.4},
            "template": {"tokens": 6120, "l0": 9.8},
            "system": {"tokens": 0, "l0": None},
            "user": {"tokens": 9830, "l0": 12.0},
            "assistant": {"tokens": 11227, "l0": 12.9},
        },
        "truth": _truth(rng, name, table, null),
        "table": table,
        "examples": {
            str(row["latent"]): sorted(
                (_example(rng, row) for _ in range(examples)), key=lambda e: -e["value"]
            )
            for row in table
        },
    }


def synthetic(*, latents=600, seed=0, examples=8):
    """A whole results.json."""
    names = ("batch_topk", "l1")
    model = {"fingerprint": "3f0c9a1b22d47e58", "parameters": 1_204_224, "architecture": "llama"}
    return {
        "jaxdiff": "0.1.0",
        "created": "2025-01-31T12:00:00+00:00",
        "config": {
            "out": "runs/quickstart",
            "site": "blocks.2.resid_post",
            "diff": {
                "batch": 2048,
                "bootstrap": 200,
                "confidence": 0.95,
                "nu_reconstruction": 0.5,
                "nu_error": 0.2,
                "examples": examples,
                "window": 12,
                "auroc": 0.9,
            },
            "seed": seed,
        },
        "provenance": {
            "seed": seed,
            "versions": {"jaxdiff": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
            "platform": "cpu",
            "devices": "1 x cpu, 2 cores",
            "models": {
                "base": {"path": "organism:chat-tiny/base", **model},
                "ft": {"path": "organism:chat-tiny/chat", **model},
            },
            "stages": {
                "harvest": {"fingerprint": "9e1f00aa12bc34de", "seconds": 21.4},
                "train/batch_topk": {"fingerprint": "0c0ffee012345678", "seconds": 75.2},
                "diff": {"fingerprint": "aa55aa55aa55aa55", "seconds": 12.9},
            },
            "seconds": 214.6,
        },
        "pair": {"base": "chat-tiny/base", "ft": "chat-tiny/chat"},
        "null_pair": {"base": "null-tiny/base", "ft": "null-tiny/longer"},
        "site": "blocks.2.resid_post",
        "roles": ROLES,
        "behaviours": [
            {"id": i + 1, "name": n, "kind": kind, "description": text}
            for i, (n, kind, text) in enumerate(
                [(n, "new", t) for n, t in NEW] + [(n, "gain", t) for n, t in GAIN]
            )
        ],
        "data": {
            "train": {"sequences": 20000, "tokens": 962_110, "masked": 20000},
            "validation": {"sequences": 1000, "tokens": 48_016, "masked": 1000},
            "test": {"sequences": 1000, "tokens": 48_210, "masked": 1000},
        },
        "dictionaries": {
            n: dictionary(n, latents=latents, seed=seed, examples=examples) for n in names
        },
        "null": {
            n: dictionary(n, latents=latents, seed=seed, null=True, examples=examples)
            for n in names
        },
    }


@pytest.fixture
def results():
    return synthetic(latents=60, examples=2)


@pytest.fixture
def make_results():
    return synthetic
