"""`make pictures`: draws mermaid's blocks of README.md and docs/, and photographs the pages of runs that are named.

    python docs/site_parts/pictures.py                            # diagrams alone
    python docs/site_parts/pictures.py --run RUN --compare RUN RUN  # and docs/images/run.png, compare.png

Needs Chromium, and for a diagram that is not drawn yet npm with a network.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))
from site_parts.diagrams import BLOCK, IMAGES, file_of  # noqa: E402

CHROMIUM = "/usr/bin/chromium"
MERMAID = "mermaid@11.17.2"
WIDTH, HEIGHT = 1280, 900  # of a photograph, in pixels
DRAW = """async code => {
  mermaid.initialize({startOnLoad: false, securityLevel: "strict", theme: "neutral", htmlLabels: false,
    fontFamily: "sans-serif", flowchart: {htmlLabels: false}});
  return (await mermaid.render("drawn", code)).svg;
}"""


def blocks() -> dict[str, str]:
    """Mermaid's code by the name of its picture."""
    pages = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    return {file_of(code): code for page in pages for code in BLOCK.findall(page.read_text(encoding="utf-8"))}


def draw(browser: Browser) -> None:
    """Each diagram that has no picture; pictures without a diagram go."""
    wanted = blocks()
    for path in IMAGES.glob("diagram_*.svg"):
        if path.name not in wanted:
            path.unlink()
    missing = {name: code for name, code in wanted.items() if not (IMAGES / name).exists()}
    if not missing:
        return
    folder = ROOT / ".cache" / "mermaid"
    subprocess.run(["npm", "install", "--silent", "--prefix", str(folder), MERMAID], check=True)
    page = browser.new_page()
    page.add_script_tag(path=folder / "node_modules/mermaid/dist/mermaid.min.js")
    for name, code in missing.items():
        (IMAGES / name).write_text(page.evaluate(DRAW, code), encoding="utf-8")
        print(f"docs/images/{name}")


def photograph(browser: Browser, command: list[str], name: str) -> None:
    """The top of the page that a command of main.py writes."""
    written = ROOT / ".cache" / "pictures" / f"{name}.html"
    written.parent.mkdir(parents=True, exist_ok=True)
    output = ["--single_file", "--output", str(written)]
    subprocess.run([sys.executable, "main.py", *command, *output], cwd=ROOT, check=True)
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(written.as_uri())
    page.wait_for_timeout(1_000)  # until the curves are drawn
    page.screenshot(path=IMAGES / f"{name}.png")
    print(f"docs/images/{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run's folder, for docs/images/run.png")
    parser.add_argument("--compare", nargs="+", help="runs, for docs/images/compare.png")
    asked = parser.parse_args()
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        draw(browser)
        if asked.run:
            photograph(browser, ["report", asked.run], "run")
        if asked.compare:
            photograph(browser, ["compare", *asked.compare], "compare")


if __name__ == "__main__":
    main()
