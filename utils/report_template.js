"use strict";

const PAGE_SIZE = 12;
const EXTREMES = 5;
const METRICS = {
  psnr: { label: "PSNR", unit: "dB", digits: 2, higherIsBetter: true },
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
  const { unit } = describe(metric);
  return unit && value !== null ? `${format(metric, value)}\u202f${unit}` : format(metric, value);
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

function valueOf(scene, metric) {
  return scene.values[report.metrics.indexOf(metric)] ?? null;
}

function sceneLink(scene) {
  return `#scene=${encodeURIComponent(scene.name)}`;
}

function fileUrl(scene, file) {
  return `${encodeURIComponent(scene.folder)}/${file}`;
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

/* The head of the page */

function drawHead() {
  byId("synopsis").textContent = synopsis();
  byId("averages").append(...report.averages.map(averageNode));
  byId("averages").hidden = report.averages.length === 0;
  const others = report.withoutInputs.map(([metric, value]) => `${describe(metric).label} ${formatWithUnit(metric, value)}`);
  byId("without-inputs").textContent = `Without targets that are input frames: ${others.join(", ")}`;
  byId("without-inputs").hidden = others.length === 0;
  byId("provenance").hidden = report.provenance.length === 0;
  byId("provenance").querySelector("tbody").append(...report.provenance.map(provenanceRow));
}

function synopsis() {
  const inputs = commonCount(report.scenes.map((scene) => scene.context.length));
  const targets = commonCount(report.scenes.map((scene) => scene.views.length));
  const scenes = plural(report.scenes.length, "scene");
  const views = [];
  if (inputs) views.push(plural(inputs, "input view"));
  if (targets) views.push(plural(targets, "target view"));
  const each = report.scenes.length > 1 ? " each" : "";
  return views.length ? `${scenes}, ${views.join(" and ")}${each}` : scenes;
}

function commonCount(counts) {
  return counts.every((count) => count === counts[0]) ? counts[0] : 0;
}

function averageNode([metric, value]) {
  const node = cloneTemplate("average-template");
  node.querySelector("dt").textContent = describe(metric).label;
  node.querySelector(".figure").textContent = format(metric, value);
  node.querySelector(".unit").textContent = describe(metric).unit;
  node.querySelector(".note").textContent = direction(metric);
  return node;
}

function provenanceRow([key, value]) {
  const row = make("tr");
  const head = make("th", key);
  head.scope = "row";
  row.append(head, make("td", value));
  return row;
}

/* Histograms */

const PLOT = { width: 340, height: 190, left: 44, right: 8, top: 18, bottom: 38 };

function drawHistograms() {
  const drawable = report.metrics.filter((metric) => new Set(numbersOf(metric)).size > 1);
  byId("histograms").append(...drawable.map(histogramNode));
  byId("distributions").hidden = drawable.length === 0;
}

function numbersOf(metric) {
  return report.scenes.map((scene) => valueOf(scene, metric)).filter((value) => value !== null);
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
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return { mean, median: quantile(0.5), low: quantile(0.05), high: quantile(0.95) };
}

function histogramNode(metric) {
  const values = numbersOf(metric);
  const bins = binned(values);
  const summary = summaryOf(values);
  const figure = make("figure");
  figure.className = "histogram";
  figure.append(histogramCaption(metric, values, summary), histogramDrawing(metric, bins, summary));
  return figure;
}

function histogramCaption(metric, values, { median, low, high }) {
  const caption = make("figcaption", describe(metric).label);
  const middle = `${format(metric, low)}${DASH}${format(metric, high)}`;
  const spread = `median ${format(metric, median)}, 5${DASH}95\u202f%: ${middle}`;
  const unscored = report.scenes.length - values.length;
  caption.append(make("span", unscored ? `${spread}; ${unscored} without a value` : spread));
  return caption;
}

function histogramDrawing(metric, bins, { mean }) {
  const top = bins.counts.reduce((a, b) => Math.max(a, b));
  const across = (PLOT.width - PLOT.left - PLOT.right) / (bins.end - bins.start);
  const up = (PLOT.height - PLOT.top - PLOT.bottom) / top;
  const x = (value) => PLOT.left + (value - bins.start) * across;
  const y = (count) => PLOT.height - PLOT.bottom - count * up;
  const svg = drawing("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img" });
  svg.setAttribute("aria-label", histogramLabel(metric, bins, mean));
  svg.append(...countAxis(top, y), ...histogramBars(metric, bins, x, y));
  svg.append(...valueAxis(metric, bins, x), ...meanMark(metric, mean, x));
  return svg;
}

function histogramLabel(metric, bins, mean) {
  const { label } = describe(metric);
  const range = `from ${formatWithUnit(metric, bins.low)} to ${formatWithUnit(metric, bins.high)}`;
  return `Histogram of ${label} over the scenes, ${range}, mean ${formatWithUnit(metric, mean)}`;
}

function histogramBars(metric, bins, x, y) {
  return bins.counts.flatMap((count, index) => {
    if (count === 0) return [];
    const from = Number((bins.start + index * bins.step).toPrecision(8));
    const to = Number((bins.start + (index + 1) * bins.step).toPrecision(8));
    const width = Math.max(x(to) - x(from) - 1, 0.5);
    const box = { x: x(from) + 0.5, y: y(count), width, height: y(0) - y(count) };
    const bar = drawing("rect", { class: "bar", ...box });
    bar.append(drawing("title", {}, `${from}${DASH}${to}: ${plural(count, "scene")}`));
    bar.addEventListener("click", () => filterToRange(metric, from, to));
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

function valueAxis(metric, bins, x) {
  const { label, unit } = describe(metric);
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

function meanMark(metric, mean, x) {
  const place = x(mean);
  const line = { x1: place, x2: place, y1: 2, y2: PLOT.height - PLOT.bottom };
  const isFarRight = place > PLOT.width * 0.7;
  const label = { x: place + (isFarRight ? -5 : 5), y: 10, "text-anchor": isFarRight ? "end" : "start" };
  return [
    drawing("line", { class: "mean", ...line }),
    drawing("text", { class: "mean-label", ...label }, `mean ${format(metric, mean)}`),
  ];
}

/* Best and worst scenes */

function drawExtremes() {
  const scored = report.scenes.filter((scene) => valueOf(scene, "psnr") !== null);
  const ranked = scored.sort((a, b) => valueOf(b, "psnr") - valueOf(a, "psnr"));
  const count = Math.min(EXTREMES, Math.floor(ranked.length / 2)); // no scene is among both
  byId("best").append(...ranked.slice(0, count).map(extremeNode));
  byId("worst").append(...ranked.slice(ranked.length - count).reverse().map(extremeNode));
  byId("extremes").hidden = count === 0;
}

function extremeNode(scene) {
  const node = cloneTemplate("extreme-template");
  node.querySelector("a").href = sceneLink(scene);
  node.querySelector("a").title = scene.name;
  node.querySelector("bdi").textContent = scene.name;
  node.querySelector(".figure").textContent = formatWithUnit("psnr", valueOf(scene, "psnr"));
  node.querySelector(".thumb").style.setProperty("--count", targetCount(scene));
  const image = node.querySelector("img");
  image.addEventListener("error", () => image.remove());
  image.src = fileUrl(scene, "gt_vs_pred.png");
  return node;
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

/* One scene */

function targetCount(scene) {
  return Math.max(1, scene.views.length);
}

function sceneNode(scene) {
  const node = cloneTemplate("scene-template");
  node.dataset.index = state.shown.indexOf(scene);
  node.setAttribute("aria-label", `Scene ${scene.name}`);
  node.querySelector(".scene-link").href = sceneLink(scene);
  node.querySelector(".scene-link bdi").textContent = scene.name;
  node.querySelector(".scene-metrics").append(...report.metrics.map((metric) => metricNode(scene, metric)));
  fillInputs(node, scene);
  fillTargets(node, scene);
  fillVideo(node, scene);
  fillViews(node, scene);
  fillFiles(node, scene);
  return node;
}

function metricNode(scene, metric) {
  const node = make("div");
  node.append(make("dt", describe(metric).label), make("dd", formatWithUnit(metric, valueOf(scene, metric))));
  return node;
}

function fillInputs(node, scene) {
  const strip = node.querySelector(".inputs .strip");
  const count = Math.max(1, scene.context.length);
  const caption = scene.context.length ? `Input: ${listFrames(scene.context)}` : "Input";
  strip.style.setProperty("--count", count);
  node.querySelector(".inputs figcaption").textContent = caption;
  strip.firstElementChild.alt = caption;
  showPicture(strip, strip.firstElementChild, fileUrl(scene, "input.png"), (image) => {
    strip.style.setProperty("--cell", image.naturalWidth / count / image.naturalHeight);
  });
}

function fillTargets(node, scene) {
  const count = targetCount(scene);
  const frames = scene.views.length ? `, ${listFrames(scene.views)}` : "";
  node.style.setProperty("--count", count);
  const url = fileUrl(scene, "gt_vs_pred.png");
  for (const image of node.querySelectorAll(".targets img")) {
    showPicture(image.parentElement, image, url, () => setCell(node, image, count));
  }
  node.querySelector(".row .truth").alt = `Ground truth${frames}`;
  node.querySelector(".compare .prediction").alt = `Prediction${frames}`;
  node.querySelector(".error .prediction").alt = `Difference of prediction and ground truth${frames}`;
  connectWipe(node.querySelector(".wipe"), node.querySelector(".compare"), count);
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

function connectWipe(slider, strip, count) {
  const show = () => showWipe(slider, strip);
  const followPointer = (event) => {
    if (event.buttons === 0) return;
    const box = strip.getBoundingClientRect();
    const place = (Math.min(Math.max(event.clientX - box.left, 0), box.width - 1) / box.width) * count;
    slider.value = Math.round((place % 1) * 100);
    show();
  };
  slider.addEventListener("input", show);
  strip.addEventListener("pointerdown", followPointer);
  strip.addEventListener("pointermove", followPointer);
  strip.addEventListener("dragstart", (event) => event.preventDefault());
  slider.setAttribute("aria-label", "Wipe from prediction to ground truth");
  show();
}

function showWipe(slider, strip) {
  strip.style.setProperty("--wipe", slider.value / 100);
  strip.classList.toggle("wiped", slider.value > 0 && slider.value < 100);
  slider.setAttribute("aria-valuetext", `${slider.value} percent ground truth`);
}

function fillVideo(node, scene) {
  const figure = node.querySelector(".path");
  if (!scene.video) {
    figure.remove();
    return;
  }
  const video = figure.querySelector("video");
  video.muted = true; // the attribute alone does not mute a cloned element
  video.dataset.src = fileUrl(scene, "rendered_video.mp4");
  video.setAttribute("aria-label", `Rendered camera path of ${scene.name}`);
  videoWatcher.observe(video);
}

function fillViews(node, scene) {
  const table = node.querySelector(".views");
  if (scene.views.length === 0) {
    table.remove();
    return;
  }
  const frames = scene.views.map((view) => (view === null ? DASH : `Frame ${view}`));
  table.tHead.append(viewRow("td", "", frames, "th"));
  report.viewMetrics.forEach((metric, column) => {
    const cells = scene.viewValues.map((values) => formatWithUnit(metric, values[column]));
    table.tBodies[0].append(viewRow("th", describe(metric).label, cells, "td"));
  });
}

function viewRow(headTag, headText, texts, tag) {
  const row = make("tr");
  row.append(make(headTag, headText), ...texts.map((text) => make(tag, text)));
  for (const head of row.querySelectorAll("th")) head.scope = headTag === "th" ? "row" : "col";
  return row;
}

function fillFiles(node, scene) {
  node.querySelector(".input-file").href = fileUrl(scene, "input.png");
  node.querySelector(".targets-file").href = fileUrl(scene, "gt_vs_pred.png");
  const metricsFile = node.querySelector(".metrics-file");
  if (report.metrics.length) metricsFile.href = fileUrl(scene, "metrics.json");
  else metricsFile.remove();
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
  byId("ranges").append(...report.metrics.map(rangeNode));
  byId("ranges-toggle").hidden = report.metrics.length === 0;
  showDirection();
}

function rangeNode(metric) {
  const node = cloneTemplate("range-template");
  const { label, unit } = describe(metric);
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
  const words = state.sort === "name" ? ["A to Z", "Z to A"] : ["Lowest first", "Highest first"];
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

function start() {
  drawHead();
  drawHistograms();
  drawExtremes();
  drawToolbar();
  connectToolbar();
  update();
  followAddress();
  window.addEventListener("hashchange", followAddress);
  document.addEventListener("click", followSameLink);
  document.addEventListener("keydown", handleKey);
  window.requestAnimationFrame(() => setTimeout(() => performance.mark("first-view")));
}

start();
