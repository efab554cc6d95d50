// One filter for map and list.
const filter = { words: [], kinds: new Set([0, 1, 2, 3]), day: "", minimal: 0, pair: "", caption: null };
const DAYS = Array.from({ length: tiles }, (_, tile) => dayOf(tile));

/** For each distinct caption whether all words occur in it. */
function matching(name) {
  return data[name].values.map((text) => {
    const small = text.toLowerCase();
    return filter.words.every((word) => small.includes(word));
  });
}

/**
 * What passes: `mask` by tile and `shown` in the list's order. `kinds` counts what would pass if all kinds were shown,
 * `captions` the changed tiles of each caption if none were chosen.
 */
function filtered() {
  const first = matching("caption");
  const second = matching("second_caption");
  const pair = filter.pair.toLowerCase();
  const pairs = data.pair_id.values.map((name) => name.toLowerCase().includes(pair));
  const mask = new Uint8Array(tiles);
  const shown = [];
  const kinds = [0, 0, 0, 0];
  const captions = new Map();
  for (let tile = 0; tile < tiles; tile++) {
    const code = data.caption.codes[tile];
    if (filter.words.length && !first[code] && !second[data.second_caption.codes[tile]]) continue;
    if (!pairs[data.pair_id.codes[tile]] || (filter.day && DAYS[tile] !== filter.day)) continue;
    if (filter.minimal > 0 && !(data.change_probability[tile] >= filter.minimal)) continue;
    const kind = data.kind[tile];
    const wanted = filter.caption === null || (code >= 0 && data.caption.values[code] === filter.caption);
    if (wanted) kinds[kind]++;
    if (!filter.kinds.has(kind)) continue;
    if (kind === CHANGED && code >= 0) captions.set(code, (captions.get(code) ?? 0) + 1);
    if (!wanted) continue;
    mask[tile] = 1;
    shown.push(tile);
  }
  return { mask, shown, kinds, captions };
}
