(() => {
  const { data, byId, all, percent, readIds, rgba, visible, legendButton } = parts;
  const VOID = 255;
  const [IMAGE, PREDICTION, LABEL, ERRORS] = [0, 1, 2, 3];
  // Errors differ in blue and orange and in brightness, for the colour-blind.
  const COLORS = {
    correct: ["#123a7a", 190],
    missed: ["#ffb000", 255],
    wrong: ["#ffb000", 255],
    extra: ["#7fc4ff", 255],
    other: ["#000000", 170],
    void: ["#6b6b6b", 200],
  };
  const className = (id) => data.classes[id]?.name ?? "no class";

  const state = { view: IMAGE, alone: null, pair: null, order: "worst", open: null, wipe: 0 };

  // --- the table of classes

  function sortTable(button) {
    const heads = all("#class-table thead th");
    const head = button.closest("th");
    const former = head.getAttribute("aria-sort");
    const ascending = former === "none" ? head === heads[0] : former === "descending";
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const place = Number(button.dataset.sort);
    const body = document.querySelector("#class-table tbody");
    const value = (row) => row.children[place].dataset.value;
    const compare = place === 0
      ? (a, b) => value(a).localeCompare(value(b))
      : (a, b) => Number(value(a)) - Number(value(b));
    const rows = [...body.rows];
    const unknown = (row) => place > 0 && Number.isNaN(Number(value(row)));
    const known = rows.filter((row) => !unknown(row)).sort(compare);
    if (!ascending) known.reverse();
    body.append(...known, ...rows.filter(unknown));
  }

  function filterTable() {
    const text = byId("filter").value.trim().toLowerCase();
    const rows = all("#class-table tbody tr");
    rows.forEach((row) => { row.hidden = !row.dataset.name.toLowerCase().includes(text); });
    const count = rows.filter((row) => !row.hidden).length;
    byId("filtered").textContent = text ? `${count} of ${rows.length} classes` : "";
  }

  // --- label maps

  const maps = new Map();
  function mapsOf(i) {
    if (!maps.has(i)) {
      const picture = data.pictures[i];
      const uris = [picture.label, ...picture.predictions];
      maps.set(i, Promise.all(uris.map(readIds)));
    }
    return maps.get(i);
  }

  const inks = Object.fromEntries(Object.entries(COLORS).map(([name, ink]) => [name, rgba(...ink)]));
  const scored = new Uint8Array(256);
  data.classes.forEach((item, id) => { scored[id] = item.scored ? 1 : 0; });

  function errorInk(label, guess) {
    if (!scored[label]) return inks.void;
    if (state.pair) {
      const predicted = state.pair[1] === data.classes.length ? VOID : state.pair[1];
      if (label !== state.pair[0]) return inks.other;
      return guess === predicted ? inks.missed : inks.correct;
    }
    if (state.alone === null) return label === guess ? inks.correct : inks.wrong;
    if (label === state.alone) return guess === label ? inks.correct : inks.missed;
    return guess === state.alone ? inks.extra : inks.other;
  }

  async function paint(canvas, i) {
    canvas.hidden = state.view === IMAGE;
    if (canvas.hidden) return;
    const { view } = state;
    const [label, ...predictions] = await mapsOf(i);
    // Another view or image was chosen while the maps were decoded.
    if (view !== state.view || (canvas.id === "viewer-canvas" && i !== state.open)) return;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    const out = new Uint32Array(pixels.data.buffer);
    if (view === ERRORS) {
      for (let p = 0; p < out.length; p++) out[p] = errorInk(label[p], predictions[0][p]);
    } else {
      const ids = view === LABEL ? label : predictions[view === PREDICTION ? 0 : view - ERRORS];
      const shown = parts.palette.slice();
      if (state.alone !== null) {
        shown.fill(inks.other);
        shown[state.alone] = rgba(visible(data.classes[state.alone].color));
      }
      for (let p = 0; p < out.length; p++) out[p] = shown[ids[p]];
    }
    context.putImageData(pixels, 0, 0);
  }

  function errorKeys() {
    if (state.pair) {
      const [label, guess] = state.pair.map(className);
      return [["missed", `${label} taken for ${guess}`], ["correct", `other ${label}`]];
    }
    if (state.alone === null) return [["correct", "correct"], ["wrong", "wrong"], ["void", "not labelled"]];
    const name = className(state.alone);
    return [["correct", `${name}, correct`], ["missed", `${name}, missed`], ["extra", `taken for ${name}`]];
  }

  function showKeys(element) {
    element.hidden = state.view !== ERRORS;
    element.replaceChildren(...errorKeys().map(([ink, text]) => {
      const item = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.style.background = COLORS[ink][0];
      item.append(swatch, text);
      return item;
    }));
  }

  // --- images

  const pictures = all("#grid .picture");
  const pixelsOf = (i, [label, guess]) =>
    data.pictures[i].cells.find((cell) => cell[0] === label && cell[1] === guess)?.[2] ?? 0;

  function inOrder() {
    const places = data.pictures.map((_, i) => i);
    const score = (i) => data.pictures[i].score ?? 2;
    if (state.pair) {
      const pixels = (i) => pixelsOf(i, state.pair);
      return places.filter((i) => pixels(i) > 0).sort((a, b) => pixels(b) - pixels(a));
    }
    if (state.order === "worst") return places.sort((a, b) => score(a) - score(b));
    if (state.order === "best") return places.sort((a, b) => score(b) - score(a));
    const iou = (i) => data.pictures[i].iou[state.order];
    return places.filter((i) => iou(i) !== undefined).sort((a, b) => iou(a) - iou(b));
  }

  function scoreText(i) {
    const picture = data.pictures[i];
    if (state.pair) return `${pixelsOf(i, state.pair).toLocaleString("en")} px`;
    const value = state.order in picture.iou ? picture.iou[state.order] : picture.score;
    return value === null ? "" : percent(value);
  }

  function statusText(count) {
    if (state.pair) {
      const [label, guess] = state.pair.map(className);
      return `${count} images of this page where ${label} is taken for ${guess}, most pixels first.`;
    }
    const alone = state.alone === null ? "" : ` Only ${className(state.alone)} is shown.`;
    return `${count} images.${alone}`;
  }

  // Classes without a label occur only in predictions: pixels counted by (label, prediction).
  function classesOf(items) {
    const ids = new Set(items.flatMap((item) => item.cells.flatMap((cell) => [cell[0], cell[1]])));
    return [...ids].filter((id) => id < data.classes.length).sort((a, b) => a - b);
  }

  function setPressed() {
    all("[data-view]").forEach((button) =>
      button.setAttribute("aria-pressed", String(Number(button.dataset.view) === state.view)));
    all("[data-alone]").forEach((button) =>
      button.setAttribute("aria-pressed", String(Number(button.dataset.alone) === state.alone)));
  }

  function render() {
    if (!pictures.length) return;
    const order = inOrder();
    const focused = document.activeElement;  // moving an element takes its focus
    pictures.forEach((picture) => { picture.hidden = true; });
    order.forEach((i) => {
      pictures[i].hidden = false;
      pictures[i].querySelector(".score").textContent = scoreText(i);
      byId("grid").append(pictures[i]);
      paint(pictures[i].querySelector("canvas"), i);
    });
    if (focused !== document.activeElement) focused.focus({ preventScroll: true });
    byId("shown").textContent = statusText(order.length);
    byId("show-all").hidden = state.pair === null && state.alone === null;
    showKeys(byId("error-key"));
    setPressed();
    if (state.open !== null) renderViewer();
  }

  // --- the viewer of one image

  function renderViewer() {
    const i = state.open;
    const picture = data.pictures[i];
    const canvas = byId("viewer-canvas");
    const photo = pictures[i].querySelector("img");
    byId("viewer-name").textContent = picture.name;
    byId("viewer-score").textContent = picture.score === null ? "" : `mean IoU ${percent(picture.score)}`;
    byId("viewer-photo").src = photo.src;
    byId("viewer-photo").alt = `Image ${picture.name}`;
    const view = document.querySelector(`#viewer [data-view="${state.view}"]`).lastChild.textContent;
    byId("wipe-view").textContent = view;
    byId("wipe").disabled = state.view === IMAGE;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${view} of ${picture.name}`);
    if (canvas.width !== photo.width || canvas.height !== photo.height) {
      [canvas.width, canvas.height] = [Number(photo.getAttribute("width")), Number(photo.getAttribute("height"))];
    }
    const stage = byId("stage");
    const ratio = canvas.width / canvas.height;
    stage.style.aspectRatio = String(ratio);
    stage.style.maxWidth = `${Math.round(ratio * 0.62 * window.innerHeight)}px`;
    canvas.style.clipPath = `inset(0 0 0 ${state.wipe}%)`;
    byId("viewer-legend").replaceChildren(...classesOf([picture]).map((id) => legendButton(id, state.alone)));
    all("[data-files]").forEach((files) => { files.hidden = Number(files.dataset.files) !== i; });
    showKeys(byId("viewer-key"));
    paint(canvas, i);
  }

  function open(i) {
    state.open = i;
    if (state.view === IMAGE) state.view = PREDICTION;
    byId("viewer").showModal();
    render();
  }

  function step(by) {
    const order = inOrder();
    const place = order.indexOf(state.open);
    state.open = order[(place + by + order.length) % order.length] ?? state.open;
    renderViewer();
  }

  // --- confusions

  function showPair(label, guess) {
    Object.assign(state, { pair: [label, guess], alone: null, view: ERRORS });
    render();
    byId("images").scrollIntoView();
  }

  function markPair() {
    const row = data.heat.rows.indexOf(Number(byId("pair-label").value));
    const column = data.heat.columns.indexOf(Number(byId("pair-prediction").value));
    const mark = byId("cell-mark");
    mark.hidden = false;
    mark.style.left = `${(100 * column) / data.heat.columns.length}%`;
    mark.style.top = `${(100 * row) / data.heat.rows.length}%`;
    byId("pair-share").textContent = percent(data.heat.shares[row][column]);
  }

  function choosePair(event) {
    const box = byId("matrix").getBoundingClientRect();
    const row = Math.floor((data.heat.rows.length * (event.clientY - box.top)) / box.height);
    const column = Math.floor((data.heat.columns.length * (event.clientX - box.left)) / box.width);
    if (!(row in data.heat.rows && column in data.heat.columns)) return false;
    byId("pair-label").value = data.heat.rows[row];
    byId("pair-prediction").value = data.heat.columns[column];
    markPair();
    return true;
  }

  const chosenPair = () => [Number(byId("pair-label").value), Number(byId("pair-prediction").value)];

  function showAll() {
    Object.assign(state, { pair: null, alone: null });
    if (pictures.length && state.order !== "best") byId("order").value = state.order = "worst";
    render();
  }

  // --- events

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { sort, view, alone, pair } = button.dataset;
    if (sort) sortTable(button);
    if (view) state.view = Number(view);
    if (alone) {
      state.alone = state.alone === Number(alone) ? null : Number(alone);
      state.pair = null;
      if (state.view === IMAGE) state.view = PREDICTION;
    }
    if (view || alone) render();
    if (alone) document.querySelector(`dialog[open] [data-alone="${alone}"]`)?.focus();
    if (pair) showPair(...pair.split(",").map(Number));
    if (button.dataset.open) open(Number(button.dataset.open));
    if (button.id === "previous") step(-1);
    if (button.id === "next") step(1);
    if (button.id === "close") byId("viewer").close();
    if (button.id === "show-all") showAll();
    if (button.id === "pair-show") showPair(...chosenPair());
  });

  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const views = all("#viewer [data-view]").length;
    const number = Number(event.key);
    if (number >= 1 && number <= views) {
      state.view = number - 1;
      render();
    } else if (state.open !== null && event.key === "ArrowRight") step(1);
    else if (state.open !== null && event.key === "ArrowLeft") step(-1);
    else if (state.open === null && event.key === "Escape") showAll();
  });

  byId("filter")?.addEventListener("input", filterTable);
  byId("matrix")?.addEventListener("pointermove", choosePair);
  byId("matrix")?.addEventListener("click", (event) => {
    if (choosePair(event) && pictures.length) showPair(...chosenPair());
  });
  for (const id of ["pair-label", "pair-prediction"]) byId(id)?.addEventListener("change", markPair);
  if (byId("matrix")) markPair();
  if (pictures.length) {
    byId("order").addEventListener("change", (event) => {
      const { value } = event.target;
      Object.assign(state, { order: value, pair: null });
      state.alone = value in data.classes ? Number(value) : null;
      if (state.alone !== null && state.view === IMAGE) state.view = PREDICTION;
      render();
    });
    byId("wipe").addEventListener("input", (event) => {
      state.wipe = Number(event.target.value);
      renderViewer();
    });
    byId("viewer").addEventListener("close", () => { state.open = null; });
    byId("legend").append(...classesOf(data.pictures).map((id) => legendButton(id, state.alone)));
    render();
  }
})();
