
/* The page of one evaluation */

const EXTREMES = 5;

function quantity(metric) {
  return { ...describe(metric), show: (value) => format(metric, value) };
}

function valueOf(scene, metric) {
  return scene.values[report.metrics.indexOf(metric)] ?? null;
}

function directionWords() {
  return ["Lowest first", "Highest first"];
}

function folderOf(scene) {
  return encodeURIComponent(scene.folder);
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
  const rows = report.provenance.map(([key, value]) => row(headCell(key, "row"), make("td", value)));
  byId("provenance").querySelector("tbody").append(...rows);
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

function histogramOf(metric) {
  const values = report.scenes.map((scene) => valueOf(scene, metric));
  const pick = (from, to) => filterToRange(metric, from, to);
  return histogramNode({ ...quantity(metric), title: describe(metric).label, values, pick });
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
  node.querySelector(".thumb").style.setProperty("--count", targetCount(scene.views));
  const image = node.querySelector("img");
  image.addEventListener("error", () => image.remove());
  image.src = fileUrl(folderOf(scene), "gt_vs_pred.png");
  return node;
}

/* One scene */

function sceneNode(scene) {
  const node = sceneFrame(scene);
  node.querySelector(".inputs").append(inputFigure(folderOf(scene), scene.context, "Input"));
  setColumns(node.querySelector(".targets"), scene.views, ...targetRows(scene), ...viewsTable(scene));
  node.querySelector(".files").append(...fileLinks(scene));
  const path = node.querySelector(".path");
  if (scene.video) path.append(pathFigure(folderOf(scene), scene, "Rendered camera path"));
  else path.remove();
  return node;
}

function targetRows(scene) {
  if (scene.views.length === 0) return [];
  const picture = (kind, label, alt) => pictureRow(kind, folderOf(scene), scene.views, label, alt);
  const prediction = picture("prediction", "Prediction", "Prediction");
  return [
    picture("truth", "Ground truth", "Ground truth"),
    prediction,
    wipeRow([prediction], scene.views),
    picture("error", "Error", "Difference of prediction and ground truth"),
    cloneTemplate("scale-template"),
  ];
}

function viewsTable(scene) {
  if (scene.views.length === 0) return [];
  const table = cloneTemplate("views-template");
  table.tHead.append(row(make("td"), ...scene.views.map((frame) => headCell(frameName(frame), "col"))));
  const rows = report.viewMetrics.map((metric, column) => {
    const cells = scene.viewValues.map((values) => make("td", formatWithUnit(metric, values[column])));
    return row(headCell(describe(metric).label, "row"), ...cells);
  });
  table.createTBody().append(...rows);
  return [table];
}

function fileLinks(scene) {
  const pictures = scene.views.length ? ["input.png", "gt_vs_pred.png"] : ["input.png"];
  const names = [...pictures, ...(report.metrics.length ? ["metrics.json"] : [])];
  return names.map((name) => fileLink(fileUrl(folderOf(scene), name), name));
}

function start() {
  drawHead();
  showHistograms(report.metrics.map(histogramOf).filter(Boolean));
  drawExtremes();
  begin();
}

start();
