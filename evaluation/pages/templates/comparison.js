
/* The page of several evaluations side by side: what is listed by are differences of one run to the first */

state.run = 1;

function quantity(metric) {
  const { label, unit } = describe(metric);
  return { label: `${label} difference`, unit, show: (value) => formatDifference(metric, value) };
}

function formatDifference(metric, value) {
  const { digits } = describe(metric);
  const text = digits === null ? String(Number(value.toPrecision(4))) : value.toFixed(digits + 1);
  const isZero = Number(text) === 0;
  if (isZero) return text.replace("-", "");
  return value > 0 ? `+${text}` : text.replace("-", MINUS);
}

function differenceOf(scene, run, metric) {
  const column = report.metrics.indexOf(metric);
  const [first, other] = [scene.values[0][column] ?? null, scene.values[run][column] ?? null];
  return first === null || other === null ? null : Number((other - first).toPrecision(6));
}

function valueOf(scene, metric) {
  return differenceOf(scene, state.run, metric);
}

function directionWords(metric) {
  const { higherIsBetter } = describe(metric);
  if (higherIsBetter === undefined) return ["Largest decrease first", "Largest increase first"];
  return higherIsBetter ? ["Largest loss first", "Largest gain first"] : ["Largest gain first", "Largest loss first"];
}

/* "gain" or "loss"; "" for neither or where no direction is better */
function verdict(metric, difference) {
  const { higherIsBetter } = describe(metric);
  if (higherIsBetter === undefined || !difference) return "";
  return difference > 0 === higherIsBetter ? "gain" : "loss";
}

/* Whether `value` is the best of `values`, which are not all the same */
function isBest(metric, value, values) {
  const { higherIsBetter } = describe(metric);
  const known = values.filter((other) => other !== null);
  if (higherIsBetter === undefined || value === null || new Set(known).size < 2) return false;
  return value === (higherIsBetter ? Math.max(...known) : Math.min(...known));
}

function folderOf(scene, run) {
  return `${report.runs[run].address}/${encodeURIComponent(scene.name)}`;
}

function labelOf(run) {
  return report.runs[run].label;
}

function positions(list) {
  return list.map((_, index) => index);
}

/* The head of the page */

function drawHead() {
  const scenes = plural(report.scenes.length, "scene");
  byId("synopsis").textContent = `${plural(report.runs.length, "run")}, ${scenes} in common`;
  byId("caveats").append(...report.caveats.map((text) => make("li", text)));
  byId("caveats").hidden = report.caveats.length === 0;
  document.documentElement.style.setProperty("--metrics", Math.max(1, report.metrics.length));
  byId("omissions").textContent = report.omissions.join(" ");
  byId("omissions").hidden = report.omissions.length === 0;
  drawRuns();
  drawDiffering();
}

function drawRuns() {
  const { tHead, tBodies } = byId("runs");
  tHead.append(row(headCell("Run", "col"), ...report.metrics.map(metricHead)));
  tBodies[0].append(...positions(report.runs).map(runRow));
  const counted = report.metrics.length > 0;
  const text = `Differences are to ${labelOf(0)}, ± their standard error over the scenes.`;
  byId("runs-note").textContent = counted ? text : "No metric is common to all runs: pictures only.";
}

function metricHead(metric) {
  const { label, unit } = describe(metric);
  const cell = headCell(unit ? `${label} (${unit})` : label, "col");
  cell.append(noteNode(direction(metric)));
  return cell;
}

function runRow(run) {
  const head = headCell("", "row");
  const name = make("bdi", labelOf(run));
  const { page, address } = report.runs[run];
  if (page) head.append(fileLink(`${address}/index.html`, ""));
  (head.firstElementChild ?? head).append(name);
  return row(head, ...report.metrics.map((metric, column) => averageCell(metric, report.averages[column], run)));
}

function averageCell(metric, averages, run) {
  const [mean, difference, error] = averages[run];
  const cell = make("td");
  const means = averages.map(([value]) => value);
  const figure = make(isBest(metric, mean, means) ? "strong" : "span", format(metric, mean));
  figure.className = "figure";
  cell.append(figure);
  if (difference !== null) cell.append(differenceNode(metric, difference, error), noteNode(shareText(metric, run)));
  return cell;
}

function differenceNode(metric, difference, error = null) {
  const text = formatDifference(metric, difference);
  const node = make("span", error === null ? text : `${text} ± ${formatDifference(metric, error).replace("+", "")}`);
  node.className = `difference ${verdict(metric, difference)}`;
  return node;
}

function shareText(metric, run) {
  if (describe(metric).higherIsBetter === undefined) return "";
  const gains = report.scenes.filter((scene) => verdict(metric, differenceOf(scene, run, metric)) === "gain");
  return `better in ${gains.length.toLocaleString("en")} of ${report.scenes.length.toLocaleString("en")}`;
}

function noteNode(text) {
  const node = make("span", text);
  node.className = "note";
  return node;
}

function drawDiffering() {
  const table = byId("differing").querySelector("table");
  const names = report.runs.map(({ label }) => headCell(label, "col"));
  table.tHead.append(row(make("td"), ...names));
  const lines = report.differing.map(([key, texts]) => {
    const cells = texts.map((text) => make("td", text ?? DASH));
    cells.forEach((cell, run) => cell.setAttribute("data-run", labelOf(run)));
    return row(headCell(key, "row"), ...cells);
  });
  table.tBodies[0].append(...lines);
  byId("differing").hidden = lines.length === 0;
}

/* Histograms: every metric of every run but the first */

function drawHistograms() {
  byId("distributions-title").firstChild.textContent = `Differences to ${labelOf(0)} `;
  const runs = positions(report.runs).slice(1);
  const nodes = runs.flatMap((run) => report.metrics.map((metric) => histogramOf(run, metric)));
  showHistograms(nodes.filter(Boolean));
}

function histogramOf(run, metric) {
  const values = report.scenes.map((scene) => differenceOf(scene, run, metric));
  const { label } = describe(metric);
  const title = report.runs.length > 2 ? `${label}: ${labelOf(run)}` : label;
  const pick = (from, to) => {
    chooseRun(run);
    filterToRange(metric, from, to);
  };
  return histogramNode({ ...quantity(metric), title, values, pick });
}

/* The toolbar: which run is ranked, and whether errors are shown */

function drawControls() {
  const runs = positions(report.runs).slice(1);
  byId("run-key").append(...runs.map((run) => new Option(labelOf(run), run)));
  byId("run-choice").hidden = runs.length < 2;
  byId("run-key").addEventListener("change", ({ target }) => {
    chooseRun(Number(target.value));
    update();
  });
  byId("errors-toggle").addEventListener("click", () => {
    const shown = byId("list").classList.toggle("with-errors");
    byId("errors-toggle").setAttribute("aria-pressed", String(shown));
  });
}

function chooseRun(run) {
  state.run = run;
  byId("run-key").value = run;
}

/* One scene */

function sceneNode(scene) {
  const node = sceneFrame(scene);
  const head = node.querySelector(".scene-metrics");
  head.title = `${labelOf(state.run)} minus ${labelOf(0)}`;
  report.metrics.forEach((metric, column) => {
    const difference = verdict(metric, valueOf(scene, metric));
    if (difference) head.children[column].lastElementChild.classList.add(difference);
  });
  node.querySelector(".inputs").append(...inputFigures(scene));
  node.querySelector(".targets").append(...scene.groups.map((group) => groupNode(scene, group)));
  node.querySelector(".files").append(...positions(report.runs).map((run) => fileLinks(scene, run)));
  fillPaths(node.querySelector(".path"), scene);
  return node;
}

function namesOf(runs) {
  return runs.map(labelOf).join(", ");
}

function inputFigures(scene) {
  const distinct = new Map(scene.groups.map((group) => [JSON.stringify(group[2]), group]).reverse());
  const groups = [...distinct.values()].reverse();
  return groups.map(([runs, , context]) => {
    const what = groups.length > 1 ? `Input of ${namesOf(runs)}` : "Input";
    return inputFigure(folderOf(scene, runs[0]), context, what);
  });
}

/* Runs that rendered the same views, under one row of ground truth. */
function groupNode(scene, [runs, views, context]) {
  const node = make("div");
  node.className = "group";
  if (scene.groups.length > 1) node.append(otherViewsNode(runs, views, context));
  const truth = pictureRow("truth", folderOf(scene, runs[0]), views, "Ground truth", "Ground truth");
  const predictions = runs.map((run) => runPictureRow("prediction", scene, run, views));
  const errors = runs.map((run) => runPictureRow("error", scene, run, views));
  setColumns(node, views, truth, ...predictions, wipeRow(predictions, views), ...errors);
  node.append(cloneTemplate("scale-template"), ...viewsTable(scene, runs, views));
  return node;
}

function otherViewsNode(runs, views, context) {
  const inputs = context.length ? `, from input ${listFrames(context)}` : "";
  const node = make("p", `Views differ. ${namesOf(runs)}: ${listFrames(views)}${inputs}`);
  node.className = "other-views";
  return node;
}

function runPictureRow(kind, scene, run, views) {
  const label = cloneTemplate("run-template");
  label.querySelector(".run-name").textContent = labelOf(run);
  const numbers = label.querySelector(".numbers");
  if (kind === "prediction") numbers.append(...report.metrics.map((metric) => numberNode(scene, run, metric)));
  else numbers.replaceWith(noteNode("error"));
  const alt = kind === "prediction" ? "Prediction" : "Difference of prediction and ground truth";
  return pictureRow(kind, folderOf(scene, run), views, label, `${alt}, ${labelOf(run)}`);
}

function numberNode(scene, run, metric) {
  const column = report.metrics.indexOf(metric);
  const node = make("div");
  const values = scene.values.map((numbers) => numbers[column]);
  const figure = make("dd");
  figure.append(make(isBest(metric, values[run], values) ? "strong" : "span", format(metric, values[run])));
  const difference = run === 0 ? null : differenceOf(scene, run, metric);
  if (difference !== null) figure.append(" ", differenceNode(metric, difference));
  node.append(make("dt", describe(metric).label), figure);
  return node;
}

function viewsTable(scene, runs, views) {
  const scored = runs.filter((run) => scene.viewValues[run].length > 0);
  if (scored.length === 0 || report.metrics.length === 0) return [];
  const table = cloneTemplate("views-template");
  const corner = make("td");
  corner.colSpan = 2;
  table.tHead.append(row(corner, ...views.map((frame) => headCell(frameName(frame), "col"))));
  report.metrics.forEach((metric, column) => {
    table.createTBody().append(...scored.map((run, index) => viewsRow(scene, scored, index, metric, column)));
  });
  return [table];
}

function viewsRow(scene, runs, index, metric, column) {
  const cells = scene.viewValues[runs[index]].map((numbers, view) => {
    const values = runs.map((run) => scene.viewValues[run][view][column]);
    const cell = make("td");
    cell.append(make(isBest(metric, values[index], values) ? "strong" : "span", format(metric, values[index])));
    return cell;
  });
  const name = headCell(labelOf(runs[index]), "row");
  name.title = labelOf(runs[index]);
  if (index > 0) return row(name, ...cells);
  const head = headCell(describe(metric).label, "rowgroup");
  head.rowSpan = runs.length;
  return row(head, name, ...cells);
}

function fillPaths(node, scene) {
  const runs = positions(report.runs).filter((run) => scene.videos[run]);
  node.append(...runs.map((run) => pathFigure(folderOf(scene, run), scene, `Rendered camera path, ${labelOf(run)}`)));
  if (runs.length === 0) node.remove();
}

function fileLinks(scene, run) {
  const folder = folderOf(scene, run);
  const line = make("span");
  const files = ["gt_vs_pred.png", ...(scene.viewValues[run].length ? ["metrics.json"] : [])];
  line.append(make("bdi", labelOf(run)), ...files.map((name) => fileLink(fileUrl(folder, name), name)));
  if (report.runs[run].page) {
    line.append(fileLink(`${report.runs[run].address}/index.html${sceneLink(scene)}`, "page"));
  }
  return line;
}

function start() {
  if (report.metrics.length) [state.sort] = report.metrics;
  state.ascending = bestFirstIsAscending(state.sort);
  drawHead();
  drawHistograms();
  drawControls();
  begin();
}

start();
