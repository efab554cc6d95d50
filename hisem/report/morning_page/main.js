// Wiring: one filter, one selected tile, shown by map, list and panel.
const $ = (id) => document.getElementById(id);
const CHIPS = 10;
let result = filtered();
let chosen = null;

const all = Array.from({ length: tiles }, (_, tile) => tile);
const [placed, unplaced] = [all.filter((tile) => data.places[tile]), all.filter((tile) => !data.places[tile])];
const layers = [];
if (placed.length) layers.push(makeLayer(placed, placed.map((tile) => unpacked(data.places[tile])), true));
if (unplaced.length || !layers.length) layers.push(makeLayer(unplaced, squares(unplaced.length), false));
let layer = layers[0];

const list = makeList(choose);
const map = makeMap($("map"), layers, (hits) => hits.length && choose(hits[(hits.indexOf(chosen) + 1) % hits.length]), $("tip"));

function choose(tile, seen = true) {
  chosen = tile;
  list.select(tile, seen);
  map.select(tile);
  const place = result.shown.indexOf(tile);
  showDetail($("detail"), tile, place, result.shown.length, (to) => choose(result.shown[to]), approach);
}

function turnTo(wanted) {
  layer = wanted;
  map.turnTo(layer);
  $("layer-map").setAttribute("aria-pressed", String(layer === layers[0]));
  $("layer-grid").setAttribute("aria-pressed", String(layer !== layers[0]));
  counts();
}

function approach(tile) {
  const home = layers.find((one) => one.where.has(tile));
  if (home !== layer) turnTo(home);
  map.approach(tile);
  $("map").scrollIntoView({ block: "nearest" });
}

function chips() {
  const most = [...result.captions].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, CHIPS);
  const texts = most.map(([code, count]) => [data.caption.values[code], count]);
  if (filter.caption !== null && !texts.some(([text]) => text === filter.caption)) texts.unshift([filter.caption, result.shown.length]);
  $("chips").replaceChildren(...texts.map(([text, count]) => {
    const chip = element("button", { type: "button", title: text, "aria-pressed": String(text === filter.caption) },
      element("span", null, text), element("b", null, inWords(count)));
    chip.addEventListener("click", () => {
      filter.caption = filter.caption === text ? null : text;
      apply();
      $("chips").querySelector("[aria-pressed=true]")?.focus();
    });
    return chip;
  }));
}

function counts() {
  $("count").textContent = `${inWords(result.shown.length)} of ${inWords(tiles)} tiles`;
  for (const box of document.getElementsByName("kind")) {
    box.parentElement.querySelector("output").textContent = inWords(result.kinds[box.value]);
  }
  const here = map.show(result.mask);
  const elsewhere = result.shown.length - here;
  const what = layer.geographic ? "on the map" : "without a place on Earth, as a grid";
  $("map-count").textContent = `${inWords(here)} ${what}` + (elsewhere ? `, ${inWords(elsewhere)} ${layer.geographic ? "without a place" : "on the map"}` : "");
  $("map-count").dataset.tiles = here;
  $("map").setAttribute("aria-label", `${$("map-count").textContent}. Arrow keys move, plus and minus zoom, 0 fits; the list has the same tiles.`);
}

function apply() {
  result = filtered();
  list.show(result.shown);
  chips();
  counts();
  choose(chosen !== null && result.mask[chosen] ? chosen : (result.shown[0] ?? null), false);
}

const asked = () => JSON.stringify({ ...filter, kinds: [...filter.kinds] });

/** Take the fields over; whether any has changed. */
function readFilters() {
  const before = asked();
  filter.words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  filter.kinds = new Set([...document.getElementsByName("kind")].filter((box) => box.checked).map((box) => Number(box.value)));
  filter.day = $("date").value;
  filter.minimal = Number($("minimal").value);
  filter.pair = $("pair").value.trim();
  $("minimal-said").textContent = filter.minimal.toFixed(2);
  return asked() !== before;
}

$("date").append(...[...new Set(DAYS)].sort().map((day) => element("option", { value: day }, day)));
$("pairs").append(...data.pair_id.values.slice(0, 1000).map((pair) => element("option", { value: pair })));
$("filters").addEventListener("submit", (event) => event.preventDefault());
for (const event of ["input", "change"]) { // not all browsers tell both of all fields
  $("filters").addEventListener(event, () => readFilters() && apply());
}
$("filters").addEventListener("reset", () => setTimeout(() => {
  filter.caption = null;
  readFilters();
  apply();
}));
$("zoom-in").addEventListener("click", () => map.zoom(1.6));
$("zoom-out").addEventListener("click", () => map.zoom(1 / 1.6));
$("zoom-fit").addEventListener("click", () => map.fitShown());
$("layers").hidden = layers.length < 2;
["layer-map", "layer-grid"].forEach((id, at) => $(id).addEventListener("click", () => turnTo(layers[at])));
if (!tiles) $("map-count").textContent = "no tiles";
readFilters(); // a browser may keep what was typed before the page was loaded anew
apply();
