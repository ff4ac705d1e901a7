"""The page in a real browser: search, sort, routes, hover. Runs where Chromium is installed."""

import json
import re
import shutil
import subprocess
import urllib.parse

import pytest

from jaxdiff.report import write

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

# Runs in the page after it is drawn, and leaves what it saw in the document.
PROBE = """
<script>
const seen = {errors: []};
addEventListener("error", (event) => seen.errors.push(event.message));
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const rows = () => [...document.querySelectorAll("#latent-table tbody tr")];
const column = (i) => rows().map((row) => row.children[i].textContent);
const hover = (node) =>
  node.dispatchEvent(new PointerEvent("pointermove", {clientX: 50, clientY: 50, bubbles: true}));
async function search(query) {
  const box = document.getElementById("search");
  box.value = query;
  box.dispatchEvent(new Event("input"));
  await wait(200);
}
async function probe() {
  await wait(300);
  seen.bars = document.querySelectorAll("#histograms .bar").length;
  seen.thresholds = document.querySelectorAll("#scatters .threshold").length;
  const bar = document.querySelector("#histograms .bar");
  hover(bar);
  seen.barTip = document.querySelector(".tip").textContent;
  seen.norms = column(3);
  document.querySelector('[data-key="latent"]').click();
  seen.latents = column(0);
  document.querySelector('[data-key="latent"]').click();
  seen.reversed = column(0);
  await search("needle-in-text");
  seen.byText = column(0);
  await search("");
  const verdict = document.getElementById("pick-verdict");
  verdict.value = "decoupled";
  verdict.dispatchEvent(new Event("change"));
  seen.verdicts = column(1);
  verdict.value = "";
  verdict.dispatchEvent(new Event("change"));
  location.hash = "#null/l1/LATENT";
  await wait(150);
  seen.title = document.querySelector("#latent h2").textContent;
  seen.kicker = document.querySelector("#latent .kicker").textContent;
  seen.hidden = document.getElementById("overview").hidden;
  const token = document.querySelector(".token.peak");
  hover(token);
  seen.tokenTip = document.querySelector(".tip").textContent;
  seen.tokens = [...document.querySelectorAll(".examples .token")].length;
  document.querySelector('#latent a[rel="next"]').click();
  await wait(150);
  seen.next = document.querySelector("#latent h2").textContent;
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
  await wait(150);
  seen.back = !document.getElementById("overview").hidden;
  seen.injected = document.querySelectorAll("script").length;
  seen.wide = document.documentElement.scrollWidth - innerWidth;
}
probe().catch((error) => seen.errors.push(String(error))).finally(() => {
  document.body.replaceChildren();
  const report = document.createElement("pre");
  report.id = "seen";
  report.textContent = encodeURIComponent(JSON.stringify(seen));
  document.body.append(report);
});
</script>
</body>
"""


def _dump(page, tmp_path, *, width=1200, fragment=""):
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
        "--virtual-time-budget=6000",
        "--dump-dom",
        page.as_uri() + fragment,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_page_as_it_is_runs_its_script(results, tmp_path):
    page = write(results, tmp_path)
    latent = results["dictionaries"]["l1"]["table"][0]["latent"]
    dom = _dump(page, tmp_path, fragment=f"#l1/{latent}")
    assert f"Latent {latent}</h2>" in dom
    assert 'class="token' in dom


def test_what_a_reader_does(results, tmp_path):
    row = results["null"]["l1"]["table"][1]
    example = results["null"]["l1"]["examples"][str(row["latent"])][0]
    wanted = results["dictionaries"]["batch_topk"]["table"][5]["latent"]
    target = results["dictionaries"]["batch_topk"]["examples"][str(wanted)][1]
    target["tokens"][0:2] = [" Needle-in", "-text"]
    page = write(results, tmp_path)
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    probe = PROBE.replace("LATENT", str(row["latent"]))
    page.write_text(text.replace("</body>", probe))
    dom = _dump(page, tmp_path)
    seen = json.loads(
        urllib.parse.unquote(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.S).group(1))
    )
    assert seen["errors"] == []
    assert seen["bars"] == 100 and seen["thresholds"] == 4
    assert re.fullmatch(r"relative norm 0\.00 to 0\.02\d+ latents", seen["barTip"])
    norms = [float(value) for value in seen["norms"]]
    assert len(norms) == 50 and norms == sorted(norms, reverse=True)
    latents = [int(value) for value in seen["latents"]]
    assert latents == sorted(latents)
    assert [int(v) for v in seen["reversed"]] == sorted(map(int, seen["reversed"]), reverse=True)
    assert seen["byText"] == [str(wanted)]
    assert set(seen["verdicts"]) == {"decoupled"}
    assert seen["title"] == f"Latent {row['latent']}" and seen["kicker"] == "Null pair: L1"
    assert seen["hidden"] and seen["back"]
    assert seen["tokenTip"].startswith("activation ")
    examples = results["null"]["l1"]["examples"][str(row["latent"])]
    assert seen["tokens"] == sum(len(e["tokens"]) for e in examples) and example["tokens"]
    assert seen["next"] == f"Latent {results['null']['l1']['table'][2]['latent']}"
    assert seen["injected"] == 4
    assert seen["wide"] <= 0
