#!/usr/bin/env bash
# Makes docs/pictures/report.png, the picture in the README, from the report of a run.
#
#   bash docs/pictures/report.sh runs/demo/report.html
#
# Needs Chromium (Debian: apt-get install chromium) and the Python environment for Pillow.
set -euo pipefail
page=$(realpath "$1") picture=$(dirname "$(realpath "$0")")/report.png
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1100,890 --screenshot="$picture" "file://$page"
# Few colours suffice for a page of text and lines, and the file is a third of the size.
python3 -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").quantize(64).save(sys.argv[1], optimize=True)' "$picture"
