// Drawing a layer: only what the view meets, one path a style.
const NAMES = ["--changed-0", "--changed-1", "--changed-2", "--changed-3", "--failed", "--unchanged", "--skipped"];
const ORDER = [6, 5, 4, 0, 1, 2, 3]; // the surest change is uppermost, as in the list
const [FAILED_STYLE, SKIPPED_STYLE] = [4, 6];
const POINT = 2; // pixels below which no tile shrinks
const POLYGON = 7; // pixels from which a footprint's own shape shows
const IMAGE = 36; // pixels from which its picture shows
const MOST_IMAGES = 300;

const decoded = new Map();

/** A tile's later picture once it is decoded; until then null, and `ready` is called when it is. */
function decodedPicture(tile, ready) {
  if (!decoded.has(tile)) {
    const source = picture("after", tile);
    if (source === null) return null;
    if (decoded.size > 2 * MOST_IMAGES) decoded.clear();
    const image = new Image();
    image.onload = ready;
    image.src = source;
    decoded.set(tile, image);
  }
  const image = decoded.get(tile);
  return image.complete && image.naturalWidth ? image : null;
}

/** Colours of the theme that holds now. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  return { styles: NAMES.map(get), sea: get("--sea"), graticule: get("--graticule"), soft: get("--soft"), mark: get("--mark"), panel: get("--panel") };
}

/** Pixel corners left, top, right, bottom of a member. */
function pixelBox(layer, screen, at) {
  const b = layer.boxes;
  return [screen.x(b[at * 4]), screen.y(b[at * 4 + 3]), screen.x(b[at * 4 + 2]), screen.y(b[at * 4 + 1])];
}

function tracePath(context, layer, screen, at) {
  for (const ring of layer.rings[at]) {
    context.moveTo(screen.x(ring[0]), screen.y(ring[1]));
    for (let k = 2; k < ring.length; k += 2) context.lineTo(screen.x(ring[k]), screen.y(ring[k + 1]));
    context.closePath();
  }
}

function drawTiles(context, layer, screen, mask, colours, ready) {
  const inView = [];
  for (const style of ORDER) {
    context.beginPath();
    const marked = [];
    for (const at of layer.styles[style]) {
      if (!mask[layer.members[at]]) continue;
      const box = pixelBox(layer, screen, at);
      const [left, top, right, bottom] = box;
      if (right < 0 || bottom < 0 || left > screen.width || top > screen.height) continue;
      const small = Math.max(right - left, bottom - top) < POLYGON;
      if (small) context.rect(left, top, Math.max(POINT, right - left), Math.max(POINT, bottom - top));
      else tracePath(context, layer, screen, at);
      if (!small && (style === FAILED_STYLE || style === SKIPPED_STYLE)) marked.push(box);
      if (right - left > IMAGE) inView.push([at, box, style]);
    }
    context.fillStyle = context.strokeStyle = colours.styles[style];
    context.globalAlpha = style === FAILED_STYLE || style === SKIPPED_STYLE ? 0.3 : 1;
    context.fill();
    context.globalAlpha = 1;
    if (marked.length) drawMarks(context, marked, style === FAILED_STYLE);
    if (screen.k * layer.size >= POLYGON) {
      context.strokeStyle = colours.sea;
      context.lineWidth = 1;
      context.stroke();
    }
  }
  if (inView.length <= MOST_IMAGES) for (const found of inView) drawPicture(context, layer, screen, colours, ready, ...found);
}

/** A stroke through skipped tiles, a cross through failed ones: told apart without colour. */
function drawMarks(context, boxes, cross) {
  const outline = new Path2D();
  for (const [left, top, right, bottom] of boxes) {
    const inset = (right - left) * 0.2;
    outline.moveTo(left + inset, bottom - inset);
    outline.lineTo(right - inset, top + inset);
    if (!cross) continue;
    outline.moveTo(left + inset, top + inset);
    outline.lineTo(right - inset, bottom - inset);
  }
  context.lineWidth = cross ? 2 : 1;
  context.stroke(outline);
}

function drawPicture(context, layer, screen, colours, ready, at, [left, top, right, bottom], style) {
  const image = decodedPicture(layer.members[at], ready);
  if (!image) return;
  context.save();
  context.beginPath();
  tracePath(context, layer, screen, at);
  context.clip();
  context.drawImage(image, left, top, right - left, bottom - top);
  context.restore();
  context.beginPath();
  tracePath(context, layer, screen, at);
  context.strokeStyle = colours.styles[style];
  context.lineWidth = 2;
  context.stroke();
}

function drawSelected(context, layer, screen, colours, tile) {
  const at = layer.where.get(tile);
  if (at === undefined) return;
  const [left, top, right, bottom] = pixelBox(layer, screen, at);
  context.beginPath();
  if (right - left < 14) context.arc((left + right) / 2, (top + bottom) / 2, 11, 0, 7);
  else tracePath(context, layer, screen, at);
  for (const [colour, width] of [[colours.panel, 6], [colours.mark, 3]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
}

/** 1, 2 or 5 times a power of ten, the least that is not below `value`. */
function round125(value) {
  const ten = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((digit) => digit * ten).find((nice) => nice >= value * 0.999999);
}

function degrees(value, step, [positive, negative]) {
  const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
  const turned = positive === "E" ? ((((value + 180) % 360) + 360) % 360) - 180 : value;
  const size = Math.abs(turned).toFixed(digits);
  return `${size}°${Number(size) === 0 ? "" : turned > 0 ? positive : negative}`;
}

function drawGraticule(context, screen, colours) {
  context.strokeStyle = colours.graticule;
  context.fillStyle = colours.soft;
  context.lineWidth = 1;
  context.font = "11px system-ui, sans-serif";
  context.beginPath();
  const labels = [];
  const [west, south, east, north] = screen.bounds;
  for (const [from, to, scale, across] of [[west, east, screen.kx, true], [south, north, screen.k, false]]) {
    const step = round125(110 / scale);
    for (let count = Math.ceil(from / step); count * step <= to; count++) {
      const at = Math.round(across ? screen.x(count * step) : screen.y(count * step)) + 0.5;
      context.moveTo(across ? at : 0, across ? 0 : at);
      context.lineTo(across ? at : screen.width, across ? screen.height : at);
      if (!across && at > screen.height - 48) continue; // the scale's place
      labels.push([degrees(count * step, step, across ? "EW" : "NS"), across ? at + 3 : 4, across ? screen.height - 5 : at - 4]);
    }
  }
  context.stroke();
  return labels;
}

function drawLabels(context, labels, colours) {
  context.lineWidth = 3;
  context.strokeStyle = colours.sea;
  context.fillStyle = colours.soft;
  for (const [text, x, y] of labels) {
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  }
}

const METRES = 111320; // of a degree of latitude

function drawScale(context, screen, colours) {
  const perPixel = METRES / screen.k;
  const metres = round125(perPixel * 60);
  const length = metres / perPixel;
  const [left, base] = [14, screen.height - 26];
  context.beginPath();
  context.moveTo(left, base - 5);
  context.lineTo(left, base);
  context.lineTo(left + length, base);
  context.lineTo(left + length, base - 5);
  for (const [colour, width] of [[colours.sea, 5], [colours.soft, 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
  const text = metres >= 1000 ? `${inWords(metres / 1000)} km` : `${metres < 1 ? metres.toPrecision(1) : metres} m`;
  drawLabels(context, [[text, left + 5, base - 6]], colours);
}
