"use strict";
// What the scripts of all pages share. Label maps are greyscale PNGs of class ids; they are
// coloured here, so that one class can be shown alone without further pictures.
const parts = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}\u202f%`;

  async function readIds(uri) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    return Uint8Array.from({ length: pixels.length / 4 }, (_, i) => pixels[4 * i]);
  }

  // ImageData is in the order red, green, blue, alpha: little-endian 32-bit numbers.
  function rgba(color, alpha = 255) {
    const number = parseInt(color.slice(1), 16);
    return ((alpha << 24) | ((number & 255) << 16) | (number & 0xff00) | (number >> 16)) >>> 0;
  }
  // A dark colour is mixed with white until it stands out from the darkened image.
  function visible(color) {
    const number = parseInt(color.slice(1), 16);
    let parts = [number >> 16, (number >> 8) & 255, number & 255];
    while (0.3 * parts[0] + 0.6 * parts[1] + 0.1 * parts[2] < 110) {
      parts = parts.map((part) => Math.ceil(part + 0.2 * (255 - part)));
    }
    return `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
  }
  const palette = new Uint32Array(256).fill(rgba("#000000"));
  data.classes.forEach((item, id) => { palette[id] = rgba(item.color); });

  function legendButton(id, alone) {
    const button = document.createElement("button");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = data.classes[id].color;
    button.append(swatch, data.classes[id].name);
    button.dataset.alone = id;
    button.setAttribute("aria-pressed", String(alone === id));
    return button;
  }

  return { data, byId, all, percent, readIds, rgba, visible, palette, legendButton };
})();
