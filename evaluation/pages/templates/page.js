"use strict";

/*
 * What the pages share. A page's own script follows in the same element and has the say on
 *   quantity(metric)      what is listed by: { label, unit, show(value) }
 *   valueOf(scene, metric)   its value in a scene, null without one
 *   directionWords(metric)   the two orders in words, ascending first
 *   sceneNode(scene)      the element of a scene
 */

const SIGNIFICANT_DIGITS = 6; // those of page.py
const PAGE_SIZE = 12;
const METRICS = {
  psnr: { label: "PSNR", unit: "dB", digits: 2, higherIsBetter: true },
  psnr_in_mask: { label: "PSNR in mask", unit: "dB", digits: 2, higherIsBetter: true },
  psnr_nearest_input: { label: "Copying nearest input", unit: "dB", digits: 2 },
  ssim: { label: "SSIM", unit: "", digits: 3, higherIsBetter: true },
  lpips: { label: "LPIPS", unit: "", digits: 3, higherIsBetter: false },
};
const DASH = "\u2013";
const MINUS = "\u2212";
const KEEPS_ARROWS = "input, select, textarea, video"; // these have their own use for arrow keys

const report = JSON.parse(document.getElementById("report-data").textContent);
const byId = (id) => document.getElementById(id);
const nameOrder = new Intl.Collator("en", { numeric: true });
const calmMotion = window.matchMedia("(prefers-reduced-motion: reduce)");
const state = { sort: "name", ascending: true, text: "", ranges: new Map(), shown: [], page: 0 };

/* Numbers and names */

function describe(metric) {
  return Object.hasOwn(METRICS, metric) ? METRICS[metric] : { label: metric, unit: "", digits: null };
}

function format(metric, value) {
  if (value === null || value === undefined) return DASH;
  if (typeof value === "string") return value;
  const { digits } = describe(metric);
  const text = digits === null ? String(Number(value.toPrecision(4))) : value.toFixed(digits);
  return text.replace("-", MINUS);
}

function formatWithUnit(metric, value) {
  return value === null ? DASH : withUnit(format(metric, value), describe(metric).unit);
}

function withUnit(text, unit) {
  return unit ? `${text}\u202f${unit}` : text;
}

function direction(metric) {
  const { higherIsBetter } = describe(metric);
  if (higherIsBetter === undefined) return "";
  return higherIsBetter ? "higher is better" : "lower is better";
}

function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

function listFrames(frames) {
  const names = frames.map((frame) => (frame === null ? DASH : String(frame)));
  if (names.length < 2) return `frame ${names.join("")}`;
  return `frames ${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

function sceneLink(scene) {
  return `#scene=${encodeURIComponent(scene.name)}`;
}

/* Building elements; text from the data only ever goes through textContent */

function make(tag, text = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

function cloneTemplate(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

function drawing(tag, attributes, text = "") {
  const node = document.createElementNS(byId("filters").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

function row(...cells) {
  const node = make("tr");
  node.append(...cells);
  return node;
}

function headCell(text, scope) {
  const cell = make("th", text);
  cell.scope = scope;
  return cell;
}

/* Histograms */

const PLOT = { width: 340, height: 190, left: 44, right: 8, top: 18, bottom: 38 };

function showHistograms(nodes) {
  byId("histograms").replaceChildren(...nodes);
  byId("distributions").hidden = nodes.length === 0;
}

function niceStep(span, parts) {
  const power = 10 ** Math.floor(Math.log10(span / parts));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= (span / parts) * 0.999);
}

function binned(values) {
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  const step = niceStep(high - low, 30);
  const first = Math.floor(low / step + 1e-9);
  const counts = new Array(Math.floor(high / step + 1e-9) - first + 1).fill(0);
  for (const value of values) counts[Math.floor(value / step + 1e-9) - first] += 1;
  return { low, high, step, counts, start: first * step, end: (first + counts.length) * step };
}

function summaryOf(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const quantile = (share) => sorted[Math.round(share * (sorted.length - 1))];
  // As many digits as the page's own averages have, so that both are rounded alike.
  const mean = Number((values.reduce((a, b) => a + b, 0) / values.length).toPrecision(SIGNIFICANT_DIGITS));
  return { mean, median: quantile(0.5), low: quantile(0.05), high: quantile(0.95) };
}

/* A plot is { title, label, unit, show(value), values, pick(from, to) }; null without two values to tell apart. */
function histogramNode({ values: all, ...plot }) {
  const values = all.filter((value) => value !== null);
  if (new Set(values).size < 2) return null;
  const bins = binned(values);
  const summary = summaryOf(values);
  const figure = make("figure");
  figure.className = "histogram";
  const caption = histogramCaption(plot, summary, all.length - values.length);
  figure.append(caption, histogramDrawing(plot, bins, summary));
  return figure;
}

function histogramCaption({ title, show }, { median, low, high }, unscored) {
  const caption = make("figcaption", title);
  const spread = `median ${show(median)}, 5${DASH}95\u202f%: ${show(low)} to ${show(high)}`;
  caption.append(make("span", unscored ? `${spread}; ${unscored} without a value` : spread));
  return caption;
}

function histogramDrawing(plot, bins, { mean }) {
  const top = bins.counts.reduce((a, b) => Math.max(a, b));
  const across = (PLOT.width - PLOT.left - PLOT.right) / (bins.end - bins.start);
  const up = (PLOT.height - PLOT.top - PLOT.bottom) / top;
  const x = (value) => PLOT.left + (value - bins.start) * across;
  const y = (count) => PLOT.height - PLOT.bottom - count * up;
  const svg = drawing("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img" });
  svg.setAttribute("aria-label", histogramLabel(plot, bins, mean));
  svg.append(...countAxis(top, y), ...histogramBars(plot, bins, x, y));
  svg.append(...valueAxis(plot, bins, x), ...meanMark(plot, mean, x));
  if (bins.start < 0 && bins.end > 0) svg.append(upright("axis", x(0)));
  return svg;
}

function histogramLabel({ label, unit, show }, bins, mean) {
  const [low, high, middle] = [bins.low, bins.high, mean].map((value) => withUnit(show(value), unit));
  return `Histogram of ${label} over the scenes, from ${low} to ${high}, mean ${middle}`;
}

function histogramBars({ pick }, bins, x, y) {
  return bins.counts.flatMap((count, index) => {
    if (count === 0) return [];
    const from = Number((bins.start + index * bins.step).toPrecision(8));
    const to = Number((bins.start + (index + 1) * bins.step).toPrecision(8));
    const width = Math.max(x(to) - x(from) - 1, 0.5);
    const box = { x: x(from) + 0.5, y: y(count), width, height: y(0) - y(count) };
    const bar = drawing("rect", { class: "bar", ...box });
    bar.append(drawing("title", {}, `${from} to ${to}: ${plural(count, "scene")}`));
    bar.addEventListener("click", () => pick(from, to));
    return [bar];
  });
}

function countAxis(top, y) {
  const step = Math.max(1, niceStep(top, 4));
  const nodes = [drawing("text", { x: 0, y: 8 }, "Scenes")];
  for (let count = 0; count <= top; count += step) {
    const line = { x1: PLOT.left, x2: PLOT.width - PLOT.right, y1: y(count), y2: y(count) };
    nodes.push(drawing("line", { class: count === 0 ? "axis" : "grid", ...line }));
    const place = { x: PLOT.left - 6, y: y(count) + 4, "text-anchor": "end" };
    nodes.push(drawing("text", place, count.toLocaleString("en")));
  }
  return nodes;
}

function valueAxis({ label, unit }, bins, x) {
  const step = niceStep(bins.end - bins.start, 6);
  const decimals = Math.min(8, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
  const base = PLOT.height - PLOT.bottom;
  const nodes = [];
  for (let tick = Math.ceil(bins.start / step - 1e-9); tick * step <= bins.end + step * 1e-6; tick += 1) {
    const place = x(tick * step);
    const text = (tick * step).toFixed(decimals).replace("-", MINUS);
    nodes.push(drawing("line", { class: "axis", x1: place, x2: place, y1: base, y2: base + 4 }));
    nodes.push(drawing("text", { x: place, y: base + 16, "text-anchor": "middle" }, text));
  }
  const middle = (PLOT.left + PLOT.width - PLOT.right) / 2;
  const title = { x: middle, y: PLOT.height - 4, "text-anchor": "middle" };
  nodes.push(drawing("text", title, unit ? `${label} (${unit})` : label));
  return nodes;
}

function meanMark({ show }, mean, x) {
  const place = x(mean);
  const isFarRight = place > PLOT.width * 0.7;
  const label = { x: place + (isFarRight ? -5 : 5), y: 10, "text-anchor": isFarRight ? "end" : "start" };
  return [upright("mean", place), drawing("text", { class: "mean-label", ...label }, `mean ${show(mean)}`)];
}

function upright(name, place) {
  return drawing("line", { class: name, x1: place, x2: place, y1: 2, y2: PLOT.height - PLOT.bottom });
}

/* Which scenes are listed, and in what order */

function matches(scene) {
  if (!scene.name.toLowerCase().includes(state.text)) return false;
  for (const [metric, [low, high]] of state.ranges) {
    const value = valueOf(scene, metric);
    if (value === null || value < low || value > high) return false;
  }
  return true;
}

function compareScenes(a, b) {
  const sign = state.ascending ? 1 : -1;
  if (state.sort === "name") return sign * nameOrder.compare(a.name, b.name);
  const [first, second] = [valueOf(a, state.sort), valueOf(b, state.sort)];
  if (first === null || second === null) return (first === null) - (second === null);
  return sign * (first - second) || nameOrder.compare(a.name, b.name);
}

function selectScenes() {
  state.shown = report.scenes.filter(matches).sort(compareScenes);
}

function update() {
  selectScenes();
  showPage(0);
  byId("clear-filters").hidden = !state.text && state.ranges.size === 0;
}

function pageCount() {
  return Math.max(1, Math.ceil(state.shown.length / PAGE_SIZE));
}

function showPage(page) {
  state.page = Math.min(Math.max(page, 0), pageCount() - 1);
  const start = state.page * PAGE_SIZE;
  releaseVideos();
  byId("list").replaceChildren(...state.shown.slice(start, start + PAGE_SIZE).map(sceneNode));
  byId("empty").hidden = state.shown.length > 0;
  updatePagers();
}

function updatePagers() {
  const all = plural(report.scenes.length, "scene");
  const filtered = state.shown.length < report.scenes.length;
  byId("count").textContent = filtered ? `${state.shown.length.toLocaleString("en")} of ${all}` : all;
  byId("page-number").value = state.page + 1;
  byId("page-number").max = pageCount();
  byId("page-total").textContent = `of ${pageCount().toLocaleString("en")}`;
  byId("bottom-pager").hidden = pageCount() === 1;
  for (const button of document.querySelectorAll(".previous")) button.disabled = state.page === 0;
  for (const button of document.querySelectorAll(".next")) button.disabled = state.page === pageCount() - 1;
}

/* One scene: its frame, and the parts that a page puts into it */

function sceneFrame(scene) {
  const node = cloneTemplate("scene-template");
  node.dataset.index = state.shown.indexOf(scene);
  node.setAttribute("aria-label", `Scene ${scene.name}`);
  node.querySelector(".scene-link").href = sceneLink(scene);
  node.querySelector(".scene-link bdi").textContent = scene.name;
  node.querySelector(".scene-metrics").append(...report.metrics.map((metric) => metricNode(scene, metric)));
  return node;
}

function metricNode(scene, metric) {
  const value = valueOf(scene, metric);
  const { unit, show } = quantity(metric);
  const node = make("div");
  const text = value === null ? DASH : withUnit(show(value), unit);
  node.append(make("dt", describe(metric).label), make("dd", text));
  return node;
}

function fileUrl(folder, file) {
  return `${folder}/${file}`;
}

/* The input views, `frames` being their numbers as far as they are known. */
function inputFigure(folder, frames, what) {
  const node = cloneTemplate("input-template");
  const strip = node.querySelector(".strip");
  const count = Math.max(1, frames.length);
  const caption = frames.length ? `${what}: ${listFrames(frames)}` : what;
  strip.style.setProperty("--count", count);
  node.querySelector("figcaption").textContent = caption;
  strip.firstElementChild.alt = caption;
  showPicture(strip, strip.firstElementChild, fileUrl(folder, "input.png"), (image) => {
    strip.style.setProperty("--cell", image.naturalWidth / count / image.naturalHeight);
  });
  return node;
}

/* The element that holds `rows` of the same target views, a column each. */
function setColumns(node, frames, ...rows) {
  node.style.setProperty("--count", targetCount(frames));
  node.append(...rows);
}

/* A row of a scene's figure: `kind` names its template; `folder` holds gt_vs_pred.png, of these frames. */
function pictureRow(kind, folder, frames, label, alt) {
  const node = cloneTemplate(`${kind}-template`);
  const strip = node.querySelector(".strip");
  node.querySelector(".label").append(label);
  for (const image of strip.querySelectorAll("img")) {
    showPicture(strip, image, fileUrl(folder, "gt_vs_pred.png"), () => setCell(node, image, targetCount(frames)));
  }
  strip.firstElementChild.alt = frames.length ? `${alt}, ${listFrames(frames)}` : alt;
  return node;
}

/* A slider that wipes the truth into each of `rows`. */
function wipeRow(rows, frames) {
  const node = cloneTemplate("wipe-template");
  const strips = rows.map((row) => row.querySelector(".compare"));
  connectWipe(node.querySelector(".wipe"), strips, targetCount(frames));
  return node;
}

function targetCount(frames) {
  return Math.max(1, frames.length);
}

function frameName(frame) {
  return frame === null ? DASH : `Frame ${frame}`;
}

function showPicture(strip, image, url, onLoad) {
  image.addEventListener("load", () => onLoad(image), { once: true });
  image.addEventListener("error", () => strip.classList.add("missing"), { once: true });
  image.src = url;
}

function setCell(node, image, count) {
  // Other scenes are most likely the same shape, so they keep the right space free before they load.
  const cell = image.naturalWidth / count / (image.naturalHeight / 2);
  node.style.setProperty("--cell", cell);
  document.documentElement.style.setProperty("--cell", cell);
}

function connectWipe(slider, strips, count) {
  const show = () => showWipe(slider, strips);
  const followPointer = (event) => {
    if (event.buttons === 0) return;
    const box = event.currentTarget.getBoundingClientRect();
    const place = (Math.min(Math.max(event.clientX - box.left, 0), box.width - 1) / box.width) * count;
    slider.value = Math.round((place % 1) * 100);
    show();
  };
  slider.addEventListener("input", show);
  for (const strip of strips) {
    strip.addEventListener("pointerdown", followPointer);
    strip.addEventListener("pointermove", followPointer);
    strip.addEventListener("dragstart", (event) => event.preventDefault());
  }
  slider.setAttribute("aria-label", "Wipe from prediction to ground truth");
  show();
}

function showWipe(slider, strips) {
  for (const strip of strips) {
    strip.style.setProperty("--wipe", slider.value / 100);
    strip.classList.toggle("wiped", slider.value > 0 && slider.value < 100);
  }
  slider.setAttribute("aria-valuetext", `${slider.value} percent ground truth`);
}

function pathFigure(folder, scene, caption) {
  const figure = cloneTemplate("path-template");
  const video = figure.querySelector("video");
  video.muted = true; // the attribute alone does not mute a cloned element
  video.dataset.src = fileUrl(folder, "rendered_video.mp4");
  video.setAttribute("aria-label", `${caption} of ${scene.name}`);
  figure.querySelector("figcaption").textContent = caption;
  videoWatcher.observe(video);
  return figure;
}

function fileLink(address, text) {
  const link = make("a", text);
  link.href = address;
  return link;
}

/* Videos load when they come into view, and run only while they are in view */

const videoWatcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) startVideo(target);
    else stopVideo(target);
  }
});

function startVideo(video) {
  const firstTime = !video.src;
  if (firstTime) {
    video.preload = "auto";
    video.src = video.dataset.src;
  }
  const wanted = firstTime ? !calmMotion.matches : video.dataset.resume === "yes";
  if (wanted) video.play().catch(() => {}); // refused or missing: its controls and its empty box say so
}

function stopVideo(video) {
  video.dataset.resume = video.paused ? "no" : "yes";
  video.pause();
}

function releaseVideos() {
  for (const video of byId("list").querySelectorAll("video")) {
    videoWatcher.unobserve(video);
    video.removeAttribute("src");
    video.load(); // a browser keeps only so many decoders
  }
}

/* Finding: the toolbar */

function drawToolbar() {
  const metricOptions = report.metrics.map((metric) => new Option(describe(metric).label, metric));
  byId("sort-key").append(new Option("Name", "name"), ...metricOptions);
  byId("sort-key").value = state.sort;
  byId("ranges").append(...report.metrics.map(rangeNode));
  byId("ranges-toggle").hidden = report.metrics.length === 0;
  showDirection();
}

function rangeNode(metric) {
  const node = cloneTemplate("range-template");
  const { label, unit } = quantity(metric);
  node.dataset.metric = metric;
  node.querySelector("legend").textContent = unit ? `${label} (${unit})` : label;
  node.querySelector(".low").setAttribute("aria-label", `Lowest ${label}`);
  node.querySelector(".high").setAttribute("aria-label", `Highest ${label}`);
  node.addEventListener("input", () => readRange(node));
  return node;
}

function readRange(node) {
  const read = (input, otherwise) => (Number.isNaN(input.valueAsNumber) ? otherwise : input.valueAsNumber);
  const range = [read(node.querySelector(".low"), -Infinity), read(node.querySelector(".high"), Infinity)];
  if (range.every((bound) => !Number.isFinite(bound))) state.ranges.delete(node.dataset.metric);
  else state.ranges.set(node.dataset.metric, range);
  update();
}

function filterToRange(metric, low, high) {
  const node = [...byId("ranges").children].find((child) => child.dataset.metric === metric);
  node.querySelector(".low").value = low;
  node.querySelector(".high").value = high;
  openRanges(true);
  readRange(node);
  goToList();
}

function openRanges(open) {
  byId("ranges").hidden = !open;
  byId("ranges-toggle").setAttribute("aria-expanded", String(open));
}

function clearFilters() {
  byId("toolbar").reset();
  byId("sort-key").value = state.sort;
  state.text = "";
  state.ranges.clear();
  update();
}

function showDirection() {
  const ascending = state.ascending;
  const words = state.sort === "name" ? ["A to Z", "Z to A"] : directionWords(state.sort);
  byId("sort-direction").textContent = words[ascending ? 0 : 1];
  byId("sort-direction").setAttribute("aria-label", `Order: ${words[ascending ? 0 : 1]}; press to reverse`);
}

function sortBy(key, ascending) {
  state.sort = key;
  state.ascending = ascending;
  showDirection();
  update();
}

function bestFirstIsAscending(key) {
  return key === "name" || describe(key).higherIsBetter === false;
}

function keepClearOfToolbar() {
  // What is scrolled to must not end up beneath the toolbar, whose height changes with its contents.
  document.documentElement.style.setProperty("--toolbar", `${byId("toolbar").offsetHeight}px`);
}

function goToList() {
  byId("scenes-title").scrollIntoView();
}

function goToPage(page) {
  showPage(page);
  goToList();
}

function connectToolbar() {
  byId("toolbar").addEventListener("submit", (event) => event.preventDefault());
  byId("name-filter").addEventListener("input", (event) => {
    state.text = event.target.value.trim().toLowerCase();
    update();
  });
  byId("sort-key").addEventListener("change", ({ target: { value } }) => sortBy(value, bestFirstIsAscending(value)));
  byId("sort-direction").addEventListener("click", () => sortBy(state.sort, !state.ascending));
  byId("ranges-toggle").addEventListener("click", () => openRanges(byId("ranges").hidden));
  byId("clear-filters").addEventListener("click", clearFilters);
  byId("page-number").addEventListener("change", ({ target }) => goToPage((target.valueAsNumber || 1) - 1));
  for (const pager of [byId("toolbar"), byId("bottom-pager")]) {
    pager.querySelector(".previous").addEventListener("click", () => goToPage(state.page - 1));
    pager.querySelector(".next").addEventListener("click", () => goToPage(state.page + 1));
  }
  new ResizeObserver(keepClearOfToolbar).observe(byId("toolbar"));
}

/* Going to one scene: permanent links and arrow keys */

function showScene(index, { setAddress }) {
  if (index < 0 || index >= state.shown.length) return;
  const page = Math.floor(index / PAGE_SIZE);
  if (page !== state.page) showPage(page);
  const node = byId("list").children[index - page * PAGE_SIZE];
  node.focus({ preventScroll: true });
  node.scrollIntoView();
  if (setAddress) window.history.replaceState(null, "", sceneLink(state.shown[index]));
}

function nameInAddress() {
  const coded = window.location.hash.match(/^#scene=(.*)$/);
  if (!coded) return null;
  try {
    return decodeURIComponent(coded[1]);
  } catch {
    return null; // not an address this page wrote
  }
}

function followAddress() {
  const name = nameInAddress();
  const isNamed = (scene) => scene.name === name;
  if (name === null || !report.scenes.some(isNamed)) return;
  if (!state.shown.some(isNamed)) clearFilters();
  showScene(state.shown.findIndex(isNamed), { setAddress: false });
}

function followSameLink(event) {
  // The browser reports a change of address, but not a second click on the address it is at.
  const link = event.target.closest('a[href^="#scene="]');
  if (link && link.hash === window.location.hash) followAddress();
}

function isInView(node) {
  const { top, bottom } = node.getBoundingClientRect();
  return bottom > 0 && top < window.innerHeight;
}

function currentIndex() {
  const nodes = [...byId("list").children];
  const focused = document.activeElement.closest(".scene");
  if (focused && isInView(focused)) return Number(focused.dataset.index);
  const readingLine = parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop) + 16;
  const passed = nodes.filter((node) => node.getBoundingClientRect().top <= readingLine).length;
  return state.page * PAGE_SIZE + passed - 1;
}

function handleKey(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.ctrlKey || event.altKey || event.metaKey || event.target.closest(KEEPS_ARROWS)) return;
  event.preventDefault();
  if (event.shiftKey) goToPage(state.page + step);
  else showScene(currentIndex() + step, { setAddress: true });
}

/* Ready: list the scenes once the page has drawn what is above them. */
function begin() {
  drawToolbar();
  connectToolbar();
  update();
  followAddress();
  window.addEventListener("hashchange", followAddress);
  document.addEventListener("click", followSameLink);
  document.addEventListener("keydown", handleKey);
  window.requestAnimationFrame(() => setTimeout(() => performance.mark("first-view")));
}
