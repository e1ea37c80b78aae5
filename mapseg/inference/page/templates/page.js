(() => {
  const { data, byId, all, percent, readIds, rgba, visible, palette, legendButton } = parts;
  if (!data.frames.length) return;
  const [IMAGE, OVERLAY] = [0, 1];
  const VIEWS = ["Image", "Overlay", "Prediction"];
  const dimmed = data.classes.every((item) => item.drawn) ? 0 : rgba("#000000", 128);
  const photos = all("#strip img");
  const state = { frame: 0, view: OVERLAY, alone: null, wipe: 0 };

  const maps = new Map();
  function idsOf(i) {
    if (!maps.has(i)) maps.set(i, readIds(data.frames[i].ids));
    return maps.get(i);
  }

  const groupOf = (i) => data.frames[i].group;
  const membersOf = (group) => data.frames.map((_, i) => i).filter((i) => groupOf(i) === group);

  // The color of each id over the image.
  function inks() {
    if (state.alone !== null) {
      const shown = new Uint32Array(256).fill(rgba("#000000", 170));
      shown[state.alone] = rgba(visible(data.classes[state.alone].color), state.view === OVERLAY ? 150 : 255);
      return shown;
    }
    if (state.view !== OVERLAY) return palette;
    const shown = new Uint32Array(256).fill(dimmed);
    data.classes.forEach((item, id) => { if (item.drawn) shown[id] = rgba(item.color, 128); });
    return shown;
  }

  async function paint() {
    const canvas = byId("canvas");
    canvas.hidden = state.view === IMAGE;
    if (canvas.hidden) return;
    const i = state.frame;
    const ids = await idsOf(i);
    if (i !== state.frame || state.view === IMAGE) return;  // another was chosen meanwhile
    const photo = photos[i];
    [canvas.width, canvas.height] = [Number(photo.getAttribute("width")), Number(photo.getAttribute("height"))];
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    const out = new Uint32Array(pixels.data.buffer);
    const shown = inks();
    for (let p = 0; p < out.length; p++) out[p] = shown[ids[p]];
    context.putImageData(pixels, 0, 0);
  }

  function largestText(frame) {
    const largest = Object.entries(frame.shares).sort((a, b) => b[1] - a[1]).slice(0, 5);
    return largest.map(([id, share]) => `${data.classes[id].name} ${percent(share)}`).join(", ");
  }

  function link([title, address]) {
    const element = document.createElement("a");
    element.href = address;
    element.textContent = title === "video" ? "film" : `full ${title}`;
    return element;
  }

  function showStage() {
    const frame = data.frames[state.frame];
    const photo = photos[state.frame];
    byId("photo").src = photo.src;
    byId("photo").alt = `Image ${frame.name}`;
    const ratio = Number(photo.getAttribute("width")) / Number(photo.getAttribute("height"));
    byId("stage").style.aspectRatio = String(ratio);
    byId("stage").style.maxWidth = `${Math.round(ratio * 0.6 * window.innerHeight)}px`;
    byId("canvas").setAttribute("role", "img");
    byId("canvas").setAttribute("aria-label", `${VIEWS[state.view]} of ${frame.name}: ${largestText(frame)}`);
    byId("canvas").style.clipPath = `inset(0 0 0 ${state.wipe}%)`;
    byId("wipe").disabled = state.view === IMAGE;
    byId("wipe-view").textContent = VIEWS[state.view];
    byId("frame-name").textContent = frame.name;
    byId("frame-confidence").textContent =
      frame.confidence === null ? "" : `mean confidence ${percent(frame.confidence)}`;
    const links = [...frame.links, ...data.groups[frame.group].links].map(link);
    byId("frame-links").replaceChildren(...links.flatMap((item, i) => (i ? [" · ", item] : [item])));
    paint();
  }

  function showStrip() {
    const members = membersOf(groupOf(state.frame));
    all("#strip li").forEach((item) => { item.hidden = Number(item.dataset.group) !== groupOf(state.frame); });
    all("#strip button").forEach((button) => {
      const isCurrent = Number(button.dataset.open) === state.frame;
      button.setAttribute("aria-current", String(isCurrent));
      if (!isCurrent) return;
      const strip = byId("strip");  // scrollIntoView would scroll the page too
      strip.scrollLeft = button.parentElement.offsetLeft - strip.offsetLeft - (strip.clientWidth - button.offsetWidth) / 2;
    });
    byId("position").max = members.length - 1;
    byId("position").value = members.indexOf(state.frame);
    byId("position").setAttribute("aria-valuetext", data.frames[state.frame].name);
    if (byId("group")) byId("group").value = groupOf(state.frame);
  }

  function showLegend() {
    const group = groupOf(state.frame);
    const frames = data.frames.filter((frame) => frame.group === group);
    const total = (id) => frames.reduce((sum, frame) => sum + (frame.shares[id] ?? 0), 0);
    const present = data.classes.map((_, id) => id).filter((id) => total(id) > 0);
    const buttons = present.sort((a, b) => total(b) - total(a)).map((id) => {
      const button = legendButton(id, state.alone);
      const share = document.createElement("span");
      share.className = "share";
      share.textContent = percent(data.frames[state.frame].shares[id] ?? 0);
      button.append(share);
      return button;
    });
    const focused = document.activeElement?.dataset?.alone;
    byId("legend").replaceChildren(...buttons);
    if (focused) document.querySelector(`#legend [data-alone="${focused}"]`)?.focus();
    all("#shares [data-chart]").forEach((chart) => { chart.hidden = Number(chart.dataset.chart) !== group; });
    all("#shares [data-class]").forEach((area) => {
      area.classList.toggle("faded", state.alone !== null && area.dataset.class !== String(state.alone));
    });
    byId("show-all").hidden = state.alone === null;
    byId("shown").textContent = state.alone === null ? "" : `Only ${data.classes[state.alone].name} is shown.`;
  }

  function render() {
    all("[data-view]").forEach((button) =>
      button.setAttribute("aria-pressed", String(Number(button.dataset.view) === state.view)));
    showStage();
    showStrip();
    showLegend();
  }

  function choose(changes) {
    Object.assign(state, changes);
    render();
  }

  function isolate(id) {
    choose({ alone: state.alone === id ? null : id, view: state.view === IMAGE ? OVERLAY : state.view });
  }

  function step(by) {
    const members = membersOf(groupOf(state.frame));
    const place = members.indexOf(state.frame) + by;
    choose({ frame: members[Math.max(0, Math.min(members.length - 1, place))] });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { view, alone, open } = button.dataset;
    if (view) choose({ view: Number(view) });
    if (alone) isolate(Number(alone));
    if (open) {
      choose({ frame: Number(open) });
      if (button.closest("#least")) byId("frames").scrollIntoView();
    }
    if (button.id === "previous") step(-1);
    if (button.id === "next") step(1);
    if (button.id === "show-all") choose({ alone: null });
  });

  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const number = Number(event.key);
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (number >= 1 && number <= VIEWS.length) choose({ view: number - 1 });
    else if (event.key in steps && !event.target.closest(".scroll")) {
      event.preventDefault();  // the page would scroll
      step(steps[event.key]);
    } else if (event.key === "Escape") choose({ alone: null });
  });

  byId("position").addEventListener("input", (event) => {
    choose({ frame: membersOf(groupOf(state.frame))[Number(event.target.value)] });
  });
  byId("group")?.addEventListener("change", (event) => {
    choose({ frame: membersOf(Number(event.target.value))[0] });
  });
  byId("wipe").addEventListener("input", (event) => {
    state.wipe = Number(event.target.value);
    showStage();
  });
  all("[data-photo]").forEach((photo) => { photo.src = photos[Number(photo.dataset.photo)].src; });
  render();
})();
