// The night's columns. A tile is its row number; rows come changed first, then failed, unchanged and skipped.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data");
const tiles = data.kind.length;
const [CHANGED, FAILED, UNCHANGED] = [0, 1, 2];
const KINDS = ["changed", "failed", "unchanged", "skipped"];
const LEFT_OUT = -2;

/** The text of a column of repeated values; null where there is none. */
function said(name, tile) {
  const code = data[name].codes[tile];
  return code < 0 ? null : data[name].values[code];
}

/** The day of the later scene, as it divides the captions table. */
const dayOf = (tile) => (said("after_time", tile) ?? "unknown").slice(0, 10);

let pictures = null;

/** A picture as a URL; null where there is none. They are unpacked when the first one is asked for. */
function picture(name, tile) {
  const place = data[name][tile];
  if (place < 0) return null;
  pictures ??= read("pictures");
  return `data:image/jpeg;base64,${pictures[place]}`;
}

const inWords = (count) => count.toLocaleString("en");
const probability = (value) => value.toFixed(value > 0.995 && value < 1 ? 4 : 2);

/** An element with properties and children; strings become text, never markup. */
function element(name, properties, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
