// One tile: both dates under a slider, and all that is known of it.

/** The pictures one over the other; the range reveals the later one from its left edge on. */
function compare(tile) {
  const [before, after] = [picture("before", tile), picture("after", tile)];
  if (!before || !after) {
    const why = data.before[tile] === LEFT_OUT || data.after[tile] === LEFT_OUT
      ? "The pictures of this tile are left out, to keep the page small."
      : "No pictures are kept of this tile.";
    return element("p", { className: "note" }, why);
  }
  const later = element("img", { src: after, alt: "after", className: "after" });
  const edge = element("span", { className: "edge" });
  const range = element("input", { type: "range", min: 0, max: 100, step: 1, id: "slider", "aria-label": "Divide between before, left, and after, right" });
  const divide = () => {
    later.style.clipPath = `inset(0 0 0 ${range.value}%)`;
    edge.style.left = `${range.value}%`;
    range.setAttribute("aria-valuetext", `${range.value} percent before`);
  };
  range.value = 50;
  range.addEventListener("input", divide);
  divide();
  const frame = element("div", { className: "compare" }, element("img", { src: before, alt: "before" }), later);
  const box = data.change_box[tile];
  const outline = box && element("span", { className: "box" });
  if (outline) {
    const [left, top, right, bottom] = box.map((share) => share * 100);
    Object.assign(outline.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    frame.append(outline);
  }
  frame.append(edge, range);
  const ends = element("div", { className: "ends" },
    element("span", null, `before ${(said("before_time", tile) ?? "").slice(0, 10)}`),
    element("span", null, `after ${(said("after_time", tile) ?? "").slice(0, 10)}`));
  const parts = [frame, ends];
  if (outline) {
    const shown = element("input", { type: "checkbox", checked: true });
    shown.addEventListener("change", () => (outline.hidden = !shown.checked));
    parts.push(element("label", { className: "outline" }, shown, "outline of the change"));
  }
  return element("div", null, ...parts);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from a file may not have the clipboard
    const field = element("textarea", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.textContent = "copied";
  setTimeout(() => (button.textContent = "copy id"), 1500);
}

function facts(tile) {
  const number = (name, digits) => data[name][tile]?.toFixed(digits) ?? null;
  const share = (name) => (data[name][tile] === null ? null : `${(data[name][tile] * 100).toFixed(1)} %`);
  const p = data.change_probability[tile];
  const meter = p === null ? null : element("span", { className: "meter" }, probability(p), element("i"));
  meter?.lastChild.style.setProperty("--share", `${p * 100}%`);
  const copying = element("button", { type: "button", id: "copy" }, "copy id");
  copying.addEventListener("click", () => copy(data.tile_id[tile], copying));
  const [row, column, height, width] = ["row_off", "col_off", "height", "width"].map((name) => data[name][tile]);
  const shift = number("shift_x", 2) === null ? null
    : `${number("shift_x", 2)} right, ${number("shift_y", 2)} down, pixels; confidence ${number("shift_confidence", 2) ?? "unknown"}`;
  const valid = share("before_valid") === null ? null : `${share("before_valid")} before, ${share("after_valid") ?? "unknown"} after`;
  return [
    [data.kind[tile] === FAILED ? "error" : "remark", said("caption", tile) === null ? null : said("error", tile)],
    ["second caption", said("second_caption", tile)],
    ["p(changed)", meter],
    ["log-probability", number("caption_logprob", 3)],
    ["before", said("before_time", tile)],
    ["after", said("after_time", tile)],
    ["shift", shift],
    ["valid", valid],
    ["pair", said("pair_id", tile)],
    ["tile", element("span", null, element("span", { id: "tile-id" }, data.tile_id[tile]), " ", copying)],
    ["window", height ? `row ${row}, column ${column}; ${height} × ${width} pixels` : null],
    ["model", said("model", tile)],
    ["captioned", said("captioned_at", tile)],
  ];
}

/** Fill the panel; `step` goes on in the list, `approach` shows the tile on the map. */
function showDetail(panel, tile, place, count, step, approach) {
  if (tile === null) {
    panel.replaceChildren(element("p", { className: "empty" }, "Choose a tile on the map or in the list."));
    return;
  }
  const held = panel.contains(document.activeElement) ? document.activeElement.id : null;
  const back = element("button", { type: "button", id: "step-back", disabled: place <= 0 }, "‹ previous");
  const forth = element("button", { type: "button", id: "step-forth", disabled: place < 0 || place >= count - 1 }, "next ›");
  back.addEventListener("click", () => step(place - 1));
  forth.addEventListener("click", () => step(place + 1));
  const near = element("button", { type: "button", id: "approach" }, "show on map");
  near.addEventListener("click", () => approach(tile));
  const kind = KINDS[data.kind[tile]];
  const known = facts(tile).filter(([, value]) => value !== null);
  panel.replaceChildren(
    element("div", { className: "steps" }, back,
      element("span", { className: "badge" }, element("i", { className: `key ${kind}` }), kind), forth),
    element("h2", { id: "headline", "aria-live": "polite" }, headline(tile)),
    compare(tile),
    element("dl", null, ...known.flatMap(([name, value]) => [element("dt", null, name), element("dd", null, value)])),
    near,
  );
  panel.scrollTop = 0;
  if (held) document.getElementById(held)?.focus();
}
