// Where tiles lie: footprints on the map, or squares of a grid for tiles without a place.
const UNITS = 1e7; // footprints are whole 1e-7 degrees, each vertex less the one before

/** Rings of a footprint in degrees, x and y in turn. */
function unpacked(rings) {
  return rings.map((ring) => {
    const degrees = new Float64Array(ring.length);
    let x = 0;
    let y = 0;
    for (let at = 0; at < ring.length; at += 2) {
      degrees[at] = (x += ring[at]) / UNITS;
      degrees[at + 1] = (y += ring[at + 1]) / UNITS;
    }
    return degrees;
  });
}

function squares(count) {
  const columns = Math.max(1, Math.ceil(Math.sqrt(count * 1.4)));
  return Array.from({ length: count }, (_, place) => {
    const x = place % columns;
    const y = -Math.floor(place / columns);
    return [Float64Array.of(x, y, x + 0.92, y, x + 0.92, y - 0.92, x, y - 0.92)];
  });
}

/** The four shades of change, then failed, unchanged, skipped. A model without a router is sure. */
function styleOf(tile) {
  const kind = data.kind[tile];
  if (kind !== CHANGED) return kind + 3;
  const p = data.change_probability[tile] ?? 1;
  return p < 0.5 ? 0 : p < 0.75 ? 1 : p < 0.95 ? 2 : 3;
}

/** Tiles with their rings and boxes (x0 y0 x1 y1), and an index of cells for finding the tile at a point. */
function makeLayer(members, rings, geographic) {
  const boxes = new Float64Array(members.length * 4);
  const bounds = [Infinity, Infinity, -Infinity, -Infinity];
  let [wide, high] = [0, 0];
  rings.forEach((parts, at) => {
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    for (const ring of parts) {
      for (let k = 0; k < ring.length; k += 2) {
        box[0] = Math.min(box[0], ring[k]);
        box[1] = Math.min(box[1], ring[k + 1]);
        box[2] = Math.max(box[2], ring[k]);
        box[3] = Math.max(box[3], ring[k + 1]);
      }
    }
    boxes.set(box, at * 4);
    bounds[0] = Math.min(bounds[0], box[0]);
    bounds[1] = Math.min(bounds[1], box[1]);
    bounds[2] = Math.max(bounds[2], box[2]);
    bounds[3] = Math.max(bounds[3], box[3]);
    wide += box[2] - box[0];
    high += box[3] - box[1];
  });
  const styles = Array.from({ length: 7 }, () => []);
  members.forEach((tile, at) => styles[styleOf(tile)].push(at));
  const middle = (bounds[1] + bounds[3]) / 2;
  const squeeze = geographic ? Math.max(0.05, Math.cos((middle * Math.PI) / 180)) : 1;
  const layer = { members, rings, boxes, bounds, styles, geographic, squeeze, size: high / members.length, view: null };
  layer.near = cellIndex(layer, wide / members.length);
  layer.where = new Map(members.map((tile, at) => [tile, at]));
  return layer;
}

/** A function from a box to the members whose cells it meets, each once. */
function cellIndex({ members, boxes, bounds, size }, width) {
  const [west, south, east, north] = bounds;
  const stepX = Math.max((east - west) / 128, width, 1e-12); // no finer than tiles are: one tile fills few cells
  const stepY = Math.max((north - south) / 128, size, 1e-12);
  const columns = Math.floor((east - west) / stepX) + 1;
  const rows = Math.floor((north - south) / stepY) + 1;
  const within = (value, count) => Math.min(count - 1, Math.max(0, Math.floor(value)));
  const cells = new Map();
  const visit = (x0, y0, x1, y1, use) => {
    const [first, last] = [within((x0 - west) / stepX, columns), within((x1 - west) / stepX, columns)];
    const [low, up] = [within((y0 - south) / stepY, rows), within((y1 - south) / stepY, rows)];
    for (let row = low; row <= up; row++) for (let column = first; column <= last; column++) use(row * columns + column);
  };
  for (let at = 0; at < members.length; at++) {
    visit(...boxes.subarray(at * 4, at * 4 + 4), (cell) => {
      if (cells.has(cell)) cells.get(cell).push(at);
      else cells.set(cell, [at]);
    });
  }
  return (x0, y0, x1, y1) => {
    const found = new Set();
    visit(x0, y0, x1, y1, (cell) => cells.get(cell)?.forEach((at) => found.add(at)));
    return found;
  };
}

function inside(ring, x, y) {
  let odd = false;
  for (let k = 0, before = ring.length - 2; k < ring.length; before = k, k += 2) {
    const [x0, y0, x1, y1] = [ring[k], ring[k + 1], ring[before], ring[before + 1]];
    if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) odd = !odd;
  }
  return odd;
}

/** The tiles under a point that pass `mask`, uppermost first; else the nearest one within the reach. */
function tilesAt(layer, mask, x, y, reachX, reachY) {
  const hits = [];
  let nearest = null;
  let least = 1;
  for (const at of layer.near(x - reachX, y - reachY, x + reachX, y + reachY)) {
    const tile = layer.members[at];
    if (!mask[tile]) continue;
    if (layer.rings[at].some((ring) => inside(ring, x, y))) hits.push(tile);
    const [x0, y0, x1, y1] = layer.boxes.subarray(at * 4, at * 4 + 4);
    const away = Math.hypot(Math.max(x0 - x, 0, x - x1) / reachX, Math.max(y0 - y, 0, y - y1) / reachY);
    if (away < least) [nearest, least] = [tile, away];
  }
  if (hits.length || nearest === null) return hits.sort((a, b) => a - b);
  return [nearest];
}
