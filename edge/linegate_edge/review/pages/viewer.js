// A picture that can be looked at closely: zoom, pan, heat map, regions; and drawn upon: boxes, and a brush.
//
// How to use it:
//   import { Viewer, load } from "/assets/viewer.js";
//   const viewer = new Viewer(canvas, { onChange });     // onChange() after each stroke or box
//   viewer.show(await load(look, canvas), regions);           // look: as in the API's PartAnswer.looks
//   viewer.heatOpacity = 0.6; viewer.tool = "box" | "brush" | "pan"; viewer.label = "crack";
//   viewer.drawn()                                        // { boxes: [{defect_class, box_xyxy}], painted }; await viewer.mask(): base64 PNG
//
// Rules kept here: all positions are pixels of the camera's frame; a picture is decoded off the main thread, first at the size
// at which it is shown, so that the next part is there at once, and whole only when somebody zooms in or draws; no pixel of the
// evidence is changed. Where pictures come from is left to whoever calls.

const HEAT = heatColours();
const MAX_SCALE = 16;
const BRUSH_PX = 14; // on the screen
const KEPT_STEPS = 50;
const LABELLED = 6; // more words than that would hide the part

/** Fetch and decode what is needed to show a look on this canvas. Throws where the picture cannot be had or decoded. */
export async function load(look, canvas) {
  if (look.picture_uri === null) return { look, blob: null, fit: null, heat: null, size: look.size_wh ?? [4, 3], trouble: look.trouble };
  const [blob, heat] = await Promise.all([fetchBlob(look.picture_uri), heatOf(look)]);
  let size = look.size_wh;
  let fit;
  try {
    if (size === null) {
      fit = await createImageBitmap(blob);
      size = [fit.width, fit.height];
    } else {
      const scale = Math.min(1, fitScale(size, canvas));
      const resizeWidth = Math.max(1, Math.round(size[0] * scale));
      const resizeHeight = Math.max(1, Math.round(size[1] * scale));
      fit = await createImageBitmap(blob, { resizeWidth, resizeHeight, resizeQuality: "medium" });
    }
  } catch {
    return { look, blob: null, fit: null, heat: null, size: size ?? [4, 3], trouble: "the picture is damaged and cannot be drawn" };
  }
  return { look, blob, fit, heat, size, trouble: null };
}

/** Let go of the memory of what `load` gave. */
export function release(loaded) {
  for (const bitmap of [loaded.fit, loaded.full]) bitmap?.close?.();
}

async function fetchBlob(uri) {
  const response = await fetch(uri);
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error ?? `the station answered ${response.status}`);
  }
  return response.blob();
}

/** The grey heat map as a small canvas in colours, clear where there is nothing. */
async function heatOf(look) {
  if (look.heat_map_uri === null) return null;
  let bitmap;
  try {
    const sent = look.heat_map ? new Blob([Uint8Array.from(atob(look.heat_map), (sign) => sign.charCodeAt(0))], { type: "image/png" }) : null;
    bitmap = await createImageBitmap(sent ?? (await fetchBlob(look.heat_map_uri)));
  } catch {
    return null; // a picture without its heat map is still worth showing
  }
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const data = pixels.data;
  for (let at = 0; at < data.length; at += 4) data.set(HEAT.subarray(data[at] * 4, data[at] * 4 + 4), at);
  context.putImageData(pixels, 0, 0);
  bitmap.close();
  return canvas;
}

/** 256 colours from clear over violet and orange to pale yellow: they get lighter all the way, for eyes that see no hue. */
function heatColours() {
  const stops = [[0, 30, 10, 60, 0], [0.33, 150, 30, 110, 150], [0.66, 240, 110, 30, 200], [1, 255, 245, 150, 235]];
  const colours = new Uint8ClampedArray(256 * 4);
  for (let value = 0; value < 256; value++) {
    const share = value / 255;
    const after = Math.max(1, stops.findIndex((stop) => stop[0] >= share));
    const [low, high] = [stops[after - 1], stops[after]];
    const between = (share - low[0]) / (high[0] - low[0]);
    for (let channel = 0; channel < 4; channel++) colours[value * 4 + channel] = low[channel + 1] + between * (high[channel + 1] - low[channel + 1]);
  }
  return colours;
}

function fitScale(size, canvas) {
  const ratio = window.devicePixelRatio || 1;
  return Math.min((canvas.clientWidth * ratio) / size[0], (canvas.clientHeight * ratio) / size[1]) || 1;
}

export class Viewer {
  #canvas; #context; #loaded = null; #regions = []; #boxes = []; #mask = null; #painted = false; #steps = [];
  #scale = 1; #x = 0; #y = 0; #fitted = true; #frame = 0; #pointers = new Map(); #draft = null; #onChange; #wanted = null;
  heatOpacity = 0.6;
  showRegions = true;
  tool = "pan";
  label = "defect";

  constructor(canvas, { onChange = () => {} } = {}) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
    this.#onChange = onChange;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.#onWheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#onDown(event));
    canvas.addEventListener("pointermove", (event) => this.#onMove(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#onUp(event));
    canvas.addEventListener("dblclick", () => (this.#fitted ? this.zoomTo(1) : this.fit()));
    canvas.addEventListener("keydown", (event) => this.#onKey(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#readColours());
    this.#readColours();
    this.#resize();
  }

  /** Show what `load` gave, with the model's regions: [{defect_class, score, box_xyxy}]; what was drawn before is gone. */
  show(loaded, regions = []) {
    this.#loaded = loaded;
    this.#regions = [...regions].sort((one, other) => other.score - one.score); // the surest first: they are the ones with words
    this.#boxes = [];
    this.#mask = null;
    this.#painted = false;
    this.#steps = [];
    this.#draft = null;
    this.#fitted = true;
    this.#place();
    this.draw();
  }

  /** Boxes and mask of an earlier decision, to look at or to go on from. */
  put(boxes) {
    this.#boxes = boxes.map((box) => ({ ...box }));
    this.redraw();
  }

  /** A painted mask, base64 of a PNG at the frame's size, to go on from. */
  async putMask(png) {
    const [width, height] = this.#loaded.size;
    const blob = new Blob([Uint8Array.from(atob(png), (sign) => sign.charCodeAt(0))], { type: "image/png" });
    const bitmap = await createImageBitmap(blob);
    this.#mask = new OffscreenCanvas(width, height);
    this.#mask.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    this.#painted = true;
    this.redraw();
  }

  drawn() {
    return { boxes: this.#boxes.map((box) => ({ ...box })), painted: this.#painted };
  }

  /** The painted mask as base64 of a PNG at the frame's size, or null. */
  async mask() {
    if (!this.#painted) return null;
    const blob = await this.#mask.convertToBlob({ type: "image/png" });
    const bytes = new Uint8Array(await blob.arrayBuffer());
    let text = "";
    for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
    return btoa(text);
  }

  get zoom() {
    return this.#scale;
  }

  get size() {
    return this.#loaded?.size ?? null;
  }

  fit() {
    this.#fitted = true;
    this.#place();
    this.redraw();
  }

  /** Zoom so that one pixel of the frame is `scale` of the screen, around a point of the canvas (its middle). */
  zoomTo(scale, x = this.#canvas.width / 2, y = this.#canvas.height / 2) {
    if (this.#loaded === null) return;
    const least = Math.min(1, fitScale(this.#loaded.size, this.#canvas));
    const to = Math.min(MAX_SCALE, Math.max(least, scale));
    this.#x = x - ((x - this.#x) * to) / this.#scale;
    this.#y = y - ((y - this.#y) * to) / this.#scale;
    this.#scale = to;
    this.#fitted = to <= least;
    if (this.#fitted) this.#place();
    this.#wantFull();
    this.redraw();
  }

  /** Draw once with the next frame of the screen. */
  redraw() {
    if (this.#frame === 0) this.#frame = requestAnimationFrame(() => this.draw());
  }

  /** Draw now. */
  draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const [context, canvas] = [this.#context, this.#canvas];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = this.#colours.mat;
    context.fillRect(0, 0, canvas.width, canvas.height);
    const loaded = this.#loaded;
    if (loaded === null) return;
    const [width, height] = loaded.size;
    if (loaded.fit === null) {
      this.#words(loaded.trouble ?? "there is no picture");
      return;
    }
    const picture = loaded.full ?? loaded.fit;
    context.imageSmoothingEnabled = this.#scale < 3;
    context.drawImage(picture, this.#x, this.#y, width * this.#scale, height * this.#scale);
    context.setTransform(this.#scale, 0, 0, this.#scale, this.#x, this.#y);
    if (loaded.heat !== null && this.heatOpacity > 0 && loaded.look.roi_xyxy !== null) {
      const [left, top, right, bottom] = loaded.look.roi_xyxy;
      context.globalAlpha = this.heatOpacity;
      context.imageSmoothingEnabled = true;
      context.drawImage(loaded.heat, left, top, right - left, bottom - top);
      context.globalAlpha = 1;
    }
    if (this.#painted) {
      context.globalAlpha = 0.5;
      context.drawImage(this.#mask, 0, 0);
      context.globalAlpha = 1;
    }
    if (this.showRegions) for (const [index, region] of this.#regions.entries()) this.#box(region, this.#colours.fail, false, index < LABELLED);
    for (const box of this.#boxes) this.#box(box, this.#colours.accent, true, true);
    if (this.#draft !== null) this.#box(this.#draft, this.#colours.accent, true, true);
  }

  /** Take the last box or stroke back; says whether there was one. */
  undo() {
    const step = this.#steps.pop();
    if (step === undefined) return false;
    if (step.kind === "box") this.#boxes.pop();
    else {
      this.#mask.getContext("2d").putImageData(step.pixels, step.left, step.top);
      this.#painted = step.painted;
    }
    this.#onChange();
    this.redraw();
    return true;
  }

  clear() {
    this.#boxes = [];
    this.#mask = null;
    this.#painted = false;
    this.#steps = [];
    this.#onChange();
    this.redraw();
  }

  // -- inside ---------------------------------------------------------------------------------------------------------

  #colours = {};

  #readColours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    this.#colours = { mat: of("--mat"), fail: of("--fail"), accent: "#35b4ff", quiet: of("--quiet") };
    this.redraw();
  }

  #resize() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(this.#canvas.clientWidth * ratio), Math.round(this.#canvas.clientHeight * ratio)];
    if (width === this.#canvas.width && height === this.#canvas.height) return;
    this.#canvas.width = Math.max(1, width);
    this.#canvas.height = Math.max(1, height);
    if (this.#fitted) this.#place();
    this.draw();
  }

  #place() {
    if (this.#loaded === null) return;
    const [width, height] = this.#loaded.size;
    // Small pictures are enlarged, but not so far that a pixel fills the screen.
    this.#scale = Math.min(fitScale(this.#loaded.size, this.#canvas), 8);
    this.#x = Math.round((this.#canvas.width - width * this.#scale) / 2);
    this.#y = Math.round((this.#canvas.height - height * this.#scale) / 2);
  }

  /** Decode the picture whole, once somebody looks closer than the copy allows. */
  async #wantFull() {
    const loaded = this.#loaded;
    if (loaded?.blob == null || loaded.full !== undefined || loaded.fit.width >= loaded.size[0] || this.#wanted === loaded) return;
    this.#wanted = loaded;
    loaded.full = await createImageBitmap(loaded.blob).catch(() => undefined);
    this.redraw();
  }

  #words(text) {
    const context = this.#context;
    const ratio = window.devicePixelRatio || 1;
    context.fillStyle = this.#colours.quiet;
    context.font = `${16 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillText(text, this.#canvas.width / 2, this.#canvas.height / 2, this.#canvas.width * 0.9);
    context.textAlign = "start";
  }

  #box(region, colour, own, labelled) {
    const context = this.#context;
    const ratio = (window.devicePixelRatio || 1) / this.#scale;
    const [left, top, right, bottom] = region.box_xyxy;
    context.lineWidth = 2.5 * ratio;
    context.strokeStyle = "rgb(0 0 0 / 0.6)";
    context.strokeRect(left - ratio, top - ratio, right - left + 2 * ratio, bottom - top + 2 * ratio);
    context.strokeStyle = colour;
    context.setLineDash(own ? [] : [7 * ratio, 4 * ratio]);
    context.strokeRect(left, top, right - left, bottom - top);
    context.setLineDash([]);
    if (!labelled) return;
    const text = region.score === undefined ? region.defect_class : `${region.defect_class} ${Number(region.score).toPrecision(3)}`;
    context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    const wide = context.measureText(text).width + 8 * ratio;
    const above = top * this.#scale + this.#y > 22 ? top - 19 * ratio : bottom + 2 * ratio;
    context.fillStyle = "rgb(0 0 0 / 0.75)";
    context.fillRect(left, above, wide, 17 * ratio);
    context.fillStyle = "#fff";
    context.fillText(text, left + 4 * ratio, above + 13 * ratio);
  }

  #at(event) {
    const ratio = window.devicePixelRatio || 1;
    const bounds = this.#canvas.getBoundingClientRect();
    const [x, y] = [(event.clientX - bounds.left) * ratio, (event.clientY - bounds.top) * ratio];
    return { x, y, px: (x - this.#x) / this.#scale, py: (y - this.#y) / this.#scale };
  }

  #onWheel(event) {
    event.preventDefault();
    const { x, y } = this.#at(event);
    this.zoomTo(this.#scale * Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), x, y);
  }

  #onDown(event) {
    if (this.#loaded?.fit == null) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#canvas.focus({ preventScroll: true });
    const at = this.#at(event);
    this.#pointers.set(event.pointerId, at);
    if (this.#pointers.size > 1) {
      this.#draft = null; // two fingers zoom, whatever the tool
    } else if (this.tool === "box" && event.button === 0) {
      this.#draft = { defect_class: this.label, box_xyxy: [at.px, at.py, at.px, at.py], from: at };
    } else if (this.tool === "brush" && event.button === 0) {
      this.#beginStroke(at, event.shiftKey);
    }
  }

  #onMove(event) {
    const before = this.#pointers.get(event.pointerId);
    if (before === undefined) return;
    const at = this.#at(event);
    if (this.#pointers.size === 2) {
      const [other] = [...this.#pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
      const [was, is] = [Math.hypot(before.x - other.x, before.y - other.y), Math.hypot(at.x - other.x, at.y - other.y)];
      if (was > 0) this.zoomTo((this.#scale * is) / was, other.x, other.y);
    } else if (this.#draft !== null) {
      this.#draft.box_xyxy = this.#between(this.#draft.from, at);
    } else if (this.tool === "brush" && event.buttons === 1) {
      this.#stroke(before, at, event.shiftKey);
    } else {
      this.#x += at.x - before.x;
      this.#y += at.y - before.y;
      this.#fitted = false;
    }
    this.#pointers.set(event.pointerId, at);
    this.redraw();
  }

  #onUp(event) {
    if (!this.#pointers.delete(event.pointerId)) return;
    if (this.#draft !== null) {
      const [left, top, right, bottom] = this.#draft.box_xyxy;
      if (right - left >= 2 && bottom - top >= 2) {
        this.#boxes.push({ defect_class: this.label, box_xyxy: [left, top, right, bottom] });
        this.#remember({ kind: "box" });
        this.#onChange();
      }
      this.#draft = null;
    } else if (this.tool === "brush" && this.#painted) this.#onChange();
    this.redraw();
  }

  /** Arrows pan, plus and minus zoom, 0 fits: a picture can be looked at without a mouse. */
  #onKey(event) {
    const step = 60 * (window.devicePixelRatio || 1);
    const pans = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key in pans && !this.#fitted) {
      this.#x += pans[event.key][0];
      this.#y += pans[event.key][1];
      event.preventDefault();
      event.stopPropagation();
      this.redraw();
    }
  }

  #between(from, to) {
    const [width, height] = this.#loaded.size;
    const within = (value, most) => Math.round(Math.min(most, Math.max(0, value)));
    return [
      within(Math.min(from.px, to.px), width), within(Math.min(from.py, to.py), height),
      within(Math.max(from.px, to.px), width), within(Math.max(from.py, to.py), height),
    ];
  }

  #remember(step) {
    this.#steps.push(step);
    if (this.#steps.length > KEPT_STEPS) this.#steps.shift();
  }

  #beginStroke(at, erase) {
    const [width, height] = this.#loaded.size;
    this.#mask ??= new OffscreenCanvas(width, height);
    // For undo, of 20 megapixels only what is in sight is kept.
    const left = Math.max(0, Math.floor(-this.#x / this.#scale));
    const top = Math.max(0, Math.floor(-this.#y / this.#scale));
    const right = Math.min(width, Math.ceil((this.#canvas.width - this.#x) / this.#scale));
    const bottom = Math.min(height, Math.ceil((this.#canvas.height - this.#y) / this.#scale));
    if (right <= left || bottom <= top) return;
    if ((right - left) * (bottom - top) <= 8e6) {
      const pixels = this.#mask.getContext("2d").getImageData(left, top, right - left, bottom - top);
      this.#remember({ kind: "stroke", pixels, left, top, painted: this.#painted });
    }
    this.#stroke(at, at, erase);
  }

  #stroke(from, to, erase) {
    const context = this.#mask.getContext("2d");
    const wide = (BRUSH_PX * (window.devicePixelRatio || 1)) / this.#scale;
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.strokeStyle = "#ffffff";
    context.lineCap = "round";
    context.lineWidth = Math.max(1, wide);
    context.beginPath();
    context.moveTo(from.px, from.py);
    context.lineTo(to.px + 0.01, to.py);
    context.stroke();
    if (!erase) this.#painted = true;
    this.redraw();
  }
}
