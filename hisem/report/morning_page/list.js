// The list: what passes the filter, fifty a page.
const PAGE = 50;

/** What a tile is called where there is one line: its caption, or why it has none. */
function headline(tile) {
  return said("caption", tile) ?? said("error", tile) ?? KINDS[data.kind[tile]];
}

function makeList(pick) {
  const list = document.getElementById("list");
  const [back, forth] = ["page-before", "page-after"].map((id) => document.getElementById(id));
  let shown = [];
  let page = 0;
  let selected = null;

  function row(tile) {
    const source = picture("after", tile) ?? picture("before", tile);
    const kind = KINDS[data.kind[tile]];
    const key = () => element("i", { className: `key ${kind}`, role: "img", "aria-label": kind, title: kind });
    const p = data.change_probability[tile];
    return element("li", null, element(
      "button", { type: "button", "data-tile": tile, "aria-current": String(tile === selected) },
      source ? element("img", { src: source, alt: "", loading: "lazy", width: 52, height: 52 }) : element("span", { className: "blank" }, element("i", { className: `key ${kind}` })),
      element("span", null,
        element("span", { className: "said" }, headline(tile)),
        element("span", { className: "under" },
          key(),
          element("span", { title: "p(changed)" }, p === null ? kind : probability(p)),
          element("span", null, dayOf(tile)),
          element("span", { title: data.tile_id[tile] }, element("bdi", null, data.tile_id[tile]))),
      ),
    ));
  }

  function render() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.max(0, Math.min(page, pages - 1));
    const rows = shown.slice(page * PAGE, (page + 1) * PAGE).map(row);
    list.replaceChildren(...(rows.length ? rows : [element("li", { className: "empty" }, "No tile passes the filter.")]));
    list.scrollTop = 0;
    document.getElementById("page").textContent = `page ${inWords(page + 1)} of ${inWords(pages)}`;
    back.disabled = page === 0;
    forth.disabled = page === pages - 1;
  }

  const turn = (by) => {
    page += by;
    render();
  };
  back.addEventListener("click", () => turn(-1));
  forth.addEventListener("click", () => turn(1));
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) pick(Number(button.dataset.tile));
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const rows = [...list.querySelectorAll("button")];
    const next = rows[rows.indexOf(document.activeElement) + step];
    if (!step || !next) return;
    event.preventDefault();
    next.focus();
  });

  return {
    show(wanted) {
      shown = wanted;
      page = 0;
      render();
    },
    /** Mark a tile, and turn to its page if it is to be seen. */
    select(tile, seen) {
      selected = tile;
      const place = shown.indexOf(tile);
      if (seen && place >= 0 && Math.floor(place / PAGE) !== page) {
        page = Math.floor(place / PAGE);
        render();
      }
      for (const button of list.querySelectorAll("button")) {
        const current = Number(button.dataset.tile) === tile;
        button.setAttribute("aria-current", String(current));
        if (!current || !seen) continue;
        const [box, around] = [button.getBoundingClientRect(), list.getBoundingClientRect()];
        if (box.top < around.top || box.bottom > around.bottom) list.scrollTop += box.top - around.top - around.height / 3;
      }
    },
  };
}
