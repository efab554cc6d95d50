// The map: a view on a layer (longitude and latitude, or a grid's columns and rows), moved by hand.
const CLOSEST = 0.7; // of the map's height that one tile may fill

/** `pick` is called with the tiles under a click, uppermost first; `tip` says what is under the pointer. */
function makeMap(canvas, layers, pick, tip) {
  const context = canvas.getContext("2d");
  let [width, height] = [0, 0];
  let layer = layers[0];
  let mask = new Uint8Array(tiles).fill(1);
  let selected = null;
  let colours = palette();
  let waiting = false;

  const extent = (members) => {
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    for (const at of members) {
      for (const k of [0, 1]) {
        box[k] = Math.min(box[k], layer.boxes[at * 4 + k]);
        box[k + 2] = Math.max(box[k + 2], layer.boxes[at * 4 + k + 2]);
      }
    }
    return box;
  };

  const middle = (at) => [0, 1].map((k) => (layer.boxes[at * 4 + k] + layer.boxes[at * 4 + k + 2]) / 2);
  const closest = () => (CLOSEST * height) / layer.size;

  /** Show the box, but nothing closer than a tile and its neighbours. */
  function fit([west, south, east, north]) {
    if (!(east >= west) || !width) return;
    const pad = Math.min(40, width / 8);
    const k = Math.min(
      (width - 2 * pad) / Math.max((east - west) * layer.squeeze, 1e-12),
      (height - 2 * pad) / Math.max(north - south, 1e-12),
    );
    layer.view = { x: (west + east) / 2, y: (south + north) / 2, k: Math.min(k, closest() / 2) };
    layer.farthest = Math.min(layer.farthest ?? Infinity, layer.view.k / 4);
    draw();
  }

  /** From world to pixels and back for the view of now. */
  function screen() {
    const { x, y, k } = layer.view;
    const kx = k * layer.squeeze;
    const left = x - width / 2 / kx;
    const top = y + height / 2 / k;
    return {
      k, kx, width, height,
      bounds: [left, top - height / k, left + width / kx, top],
      x: (value) => (value - left) * kx,
      y: (value) => (top - value) * k,
      world: (px, py) => [left + px / kx, top - py / k],
    };
  }

  function paint() {
    waiting = false;
    if (!layer.view) return;
    const now = screen();
    const ratio = canvas.width / width;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = colours.sea;
    context.fillRect(0, 0, width, height);
    const labels = layer.geographic ? drawGraticule(context, now, colours) : [];
    drawTiles(context, layer, now, mask, colours, draw);
    if (selected !== null && mask[selected]) drawSelected(context, layer, now, colours, selected);
    drawLabels(context, labels, colours);
    if (layer.geographic) drawScale(context, now, colours);
    canvas.dataset.bounds = now.bounds.join(" ");
  }

  function draw() {
    if (!waiting) requestAnimationFrame(paint);
    waiting = true;
  }

  function zoom(factor, px = width / 2, py = height / 2) {
    if (!layer.view) return;
    const before = screen().world(px, py);
    layer.view.k = Math.max(layer.farthest, Math.min(closest(), layer.view.k * factor));
    const after = screen().world(px, py);
    move(before[0] - after[0], before[1] - after[1]);
  }

  function move(x, y) {
    layer.view.x = Math.max(layer.bounds[0], Math.min(layer.bounds[2], layer.view.x + x));
    layer.view.y = Math.max(layer.bounds[1], Math.min(layer.bounds[3], layer.view.y + y));
    draw();
  }

  const drag = (dx, dy) => layer.view && move(-dx / screen().kx, dy / layer.view.k);

  function under(event) {
    if (!layer.view) return [];
    const now = screen();
    const reach = event.pointerType === "touch" ? 14 : 5;
    return tilesAt(layer, mask, ...now.world(event.offsetX, event.offsetY), reach / now.kx, reach / now.k);
  }

  hands(canvas, { drag, zoom, fit: () => fitShown(), pick: (event) => pick(under(event)), hover: (event) => hover(event) });

  function hover(event) {
    const [tile] = event ? under(event) : [];
    canvas.style.cursor = tile === undefined ? "" : "pointer";
    tip.hidden = tile === undefined;
    if (tip.hidden) return;
    tip.textContent = headline(tile);
    const right = event.offsetX > width / 2;
    tip.style.left = right ? "auto" : `${event.offsetX + 14}px`;
    tip.style.right = right ? `${width - event.offsetX + 14}px` : "auto";
    tip.style.top = `${Math.min(event.offsetY + 10, height - 60)}px`;
  }

  const shownMembers = () => layer.members.map((_, at) => at).filter((at) => mask[layer.members[at]]);
  const fitShown = () => fit(extent(shownMembers()));

  new ResizeObserver(() => {
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    if (layer.view) draw();
    else fit(layer.bounds);
  }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    colours = palette();
    draw();
  });

  return {
    zoom,
    fitShown,
    /** Show the tiles of `wanted` only; how many of this layer they are. */
    show(wanted) {
      mask = wanted;
      draw();
      return layer.members.reduce((count, tile) => count + mask[tile], 0);
    },
    /** Come so close to a tile that its picture shows. */
    approach(tile) {
      const at = layer.where.get(tile);
      if (at === undefined || !layer.view) return;
      const [x, y] = middle(at);
      Object.assign(layer.view, { x, y, k: closest() / 4 });
      draw();
    },
    /** Mark a tile, and move there if it is out of sight. */
    select(tile) {
      selected = tile;
      const at = layer.where.get(tile);
      if (at !== undefined && layer.view) {
        const [x, y] = middle(at);
        const [west, south, east, north] = screen().bounds;
        if (x < west || x > east || y < south || y > north) Object.assign(layer.view, { x, y });
      }
      draw();
    },
    turnTo(wanted) {
      layer = wanted;
      if (layer.view) draw();
      else fit(layer.bounds);
    },
  };
}

/** Drag, pinch, wheel, click and keys of the canvas. */
function hands(canvas, { drag, zoom, fit, pick, hover }) {
  const down = new Map();
  let moved = 0;
  const spread = () => {
    const [a, b] = [...down.values()];
    return Math.hypot(a.offsetX - b.offsetX, a.offsetY - b.offsetY);
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    if (!down.size) moved = 0;
    down.set(event.pointerId, event);
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = down.get(event.pointerId);
    if (!last) return hover(event);
    const apart = down.size > 1 ? spread() : 0;
    const [dx, dy] = [event.offsetX - last.offsetX, event.offsetY - last.offsetY];
    moved += Math.abs(dx) + Math.abs(dy);
    down.set(event.pointerId, event);
    if (moved < 4) return;
    hover(null);
    drag(dx / down.size, dy / down.size);
    if (apart) zoom(spread() / apart, event.offsetX, event.offsetY);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (down.delete(event.pointerId) && moved < 4) pick(event);
  });
  canvas.addEventListener("pointercancel", (event) => down.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY * (event.deltaMode ? 30 : 1))) / 300), event.offsetX, event.offsetY);
  }, { passive: false });
  const keys = {
    ArrowLeft: () => drag(60, 0), ArrowRight: () => drag(-60, 0), ArrowUp: () => drag(0, 60), ArrowDown: () => drag(0, -60),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
}
