// The page: a photograph goes up as a job, its probabilities come back once, and everything else
// (threshold, outlines, figures) happens here.
"use strict";

const $ = (id) => document.getElementById(id);
const VIEW = 2048;  // pixels: photographs larger than this are shown reduced
let job = null, upload = null, file = null;  // what is under way
let scene = null;  // what is shown: levels, buildings, figures, overlay, map

// ------------------------------------------------------------------ talking to the service

function headers(more = {}) {
  const token = sessionStorage.getItem("token");
  return token ? {...more, Authorization: `Bearer ${token}`} : more;
}

async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, {...options, headers: headers(options.headers)});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service can't be reached. Is it running?");
  }
  if (!response.ok) throw await problem(response.status, await response.text());
  return response;
}

async function problem(status, text) {
  let sentence = `The service answered with an error (${status}).`;
  try { sentence = JSON.parse(text).detail || sentence; } catch { /* no problem+json: a proxy's page */ }
  return Object.assign(new Error(sentence), {status});
}

// fetch can't tell how far an upload is; XMLHttpRequest can.
function send(body, query) {
  return new Promise((resolve, reject) => {
    upload = new XMLHttpRequest();
    upload.open("POST", `buildings_mask/?${new URLSearchParams(query)}`);
    for (const [name, value] of Object.entries(headers({Prefer: "respond-async", Accept: "application/json"})))
      upload.setRequestHeader(name, value);
    upload.upload.onprogress = (event) => doing("Uploading", 100 * event.loaded / event.total);
    upload.upload.onload = () => doing("Waiting for a free place");
    upload.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    upload.onerror = () => reject(new Error("The upload broke off. Is the service running?"));
    upload.onload = async () => upload.status === 202
      ? resolve(JSON.parse(upload.responseText))
      : reject(await problem(upload.status, upload.responseText));
    const form = new FormData();
    form.append("file", body, body.name || "photograph");
    upload.send(form);
  });
}

const result = (kind, query = {}) =>
  ask(`jobs/${job}/result?${new URLSearchParams({response_type: kind, ...query})}`);

function forget() {
  upload?.abort();
  if (job) fetch(`jobs/${job}`, {method: "DELETE", headers: headers(), keepalive: true}).catch(() => {});
  job = upload = null;
}

// ------------------------------------------------------------------ the three states

function show(state) {
  document.body.dataset.state = state;
  if (state !== "result" && scene) { scene.map.remove(); scene = null; }
  $("error").hidden = true;
}

function doing(what, percent) {
  $("doing").textContent = what;
  if (percent === undefined) $("progress").removeAttribute("value");
  else $("progress").value = percent;
}

function fail(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) return askToken();
  if (document.body.dataset.state === "work") show("start");
  $("error").querySelector("p").textContent = error.message;
  $("error").hidden = false;
}

function askToken() {
  show("start");
  $("token").showModal();
  $("token").onclose = () => {
    if (!$("token-value").value) return;
    sessionStorage.setItem("token", $("token-value").value);
    if (file) start(file);
  };
}

async function start(chosen, query = {}) {
  forget();
  file = chosen;
  show("work");
  $("name").textContent = chosen.name || "";
  doing("Uploading", 0);
  try {
    const mine = job = (await send(chosen, query)).id;
    for (;;) {
      const state = await (await ask(`jobs/${mine}`)).json();
      if (job !== mine) return;
      if (state.status === "failed") throw new Error(state.message);
      if (state.status === "successful") break;
      doing(state.status === "running" ? "Looking for buildings" : "Waiting for its turn",
        state.progress || undefined);
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
    doing("Fetching the result", 100);
    const [photo, probability, figures] = await Promise.all(
      [["photo", {size: VIEW}], ["probability", {size: VIEW}], ["json", {}]].map((what) => result(...what)));
    const [picture, levels, body] = [
      await createImageBitmap(await photo.blob()), await readLevels(await probability.blob()), await figures.json()];
    if (job === mine) present(picture, levels, body);
  } catch (error) { fail(error); }
}

// ------------------------------------------------------------------ the result

function present(photo, levels, figures) {
  show("result");
  const {width, height} = levels, corners = figures.corners;
  const map = L.map("map", {
    crs: corners ? L.CRS.EPSG3857 : L.CRS.Simple,
    zoomSnap: 0.25, minZoom: -8, maxZoom: corners ? 24 : 6, zoomAnimation: false, fadeAnimation: false,
  });
  // L.CRS.Simple counts upwards, pixels downwards.
  const places = corners ? corners.map(([lon, lat]) => [lat, lon])
    : [[0, 0], [0, width], [-height, width], [-height, 0]];
  const overlay = new Overlay(photo, [width, height], [places[0], places[1], places[3]]);
  scene = {map, overlay, levels, figures, mask: document.createElement("canvas")};
  scene.reduced = figures.width > width || figures.height > height;
  map.fitBounds(places, {padding: [12, 12]});
  overlay.addTo(map);
  if (corners) L.control.scale({imperial: false}).addTo(map);
  map.on("click", measure);
  $("threshold").value = defaultLevel();
  $("smallest").value = figures.pixel_size ? 10 : 0;  // specks are no buildings
  $("smallest").disabled = !figures.pixel_size;
  $("ground").hidden = Boolean(figures.pixel_size);
  document.querySelector("[data-kind=geojson]").disabled = !corners;
  about();
  setOpacity();
  setThreshold();
  $("map").focus({preventScroll: true});
}

const defaultLevel = () => Math.min(255, Math.max(1, Math.round(scene.figures.model.threshold * 255)));

// Square metres of a pixel as it is shown; null where the photograph's scale is unknown.
function pixelArea() {
  const {pixel_size: size, width, height} = scene.figures;
  return size ? size * size * width * height / (scene.levels.width * scene.levels.height) : null;
}

function setOpacity() {
  $("opacity-value").textContent = `${$("opacity").value} %`;
  if (!scene) return;
  scene.overlay.opacity = $("opacity").value / 100;
  scene.overlay.outlines = $("outlines").checked;
  scene.overlay.draw();
}

let waiting = 0;
function setThreshold() {
  const level = Number($("threshold").value), smallest = Number($("smallest").value);
  $("threshold-value").textContent = (level / 255).toFixed(2);
  $("smallest-value").textContent = scene.figures.pixel_size ? `${smallest} m²` : "scale unknown";
  paintMask(scene.levels, level, scene.mask);
  scene.overlay.mask = scene.mask;
  scene.overlay.edges = null;
  scene.overlay.draw();
  clearTimeout(waiting);
  waiting = setTimeout(settle, 60, level, smallest);
}

// Count and outline once the slider rests: it takes longer than a frame on large photographs.
async function settle(level, smallest) {
  if (!scene) return;
  const area = pixelArea(), least = area ? smallest / area : 0, shown = scene;
  scene.buildings = findBuildings(scene.levels, level);
  scene.overlay.edges = edgesOf(scene.buildings, least);
  scene.overlay.draw();
  const kept = scene.buildings.sizes.slice(1).filter((size) => size >= least);
  const pixels = kept.reduce((sum, size) => sum + size, 0);
  tell(kept.length, area && pixels * area, scene.reduced);
  if (!scene.reduced) return;
  try {  // what is shown is reduced: the service counts in full
    const exact = await (await result("json", query())).json();
    if (scene === shown && Number($("threshold").value) === level) tell(exact.buildings, exact.built_area_m2);
  } catch (error) { if (error.status !== 422) fail(error); }
}

function tell(count, area, about = false) {
  $("count").textContent = (about ? "≈ " : "") + count.toLocaleString("en");
  $("count-word").textContent = count === 1 ? "building" : "buildings";
  $("area").textContent = area === null ? "" : `${squareMetres(area)} built over`;
}

const squareMetres = (area) => area >= 1e6 ? `${(area / 1e6).toPrecision(3)} km²`
  : `${Math.round(area).toLocaleString("en")} m²`;

function query() {
  const query = {threshold: $("threshold").value / 255};
  if (Number($("smallest").value)) query.min_area = $("smallest").value;
  return query;
}

function about() {
  const {width, height, pixel_size: size, corners, model, seconds} = scene.figures;
  const rows = [["Photograph", file.name], ["Size", `${width} × ${height} px`]];
  if (size) rows.push(["Pixel", `${size.toPrecision(2)} m`]);
  if (corners) {
    const [lon, lat] = [0, 1].map((i) => corners.reduce((sum, corner) => sum + corner[i], 0) / 4);
    rows.push(["Centre", `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(4)}° ${lon < 0 ? "W" : "E"}`]);
  }
  rows.push(["Model", model.id]);
  $("about").replaceChildren(...rows.flatMap(([name, value]) =>
    [["dt", name], ["dd", value]].map(([tag, text]) => Object.assign(document.createElement(tag), {textContent: text}))));
}

function measure(event) {
  const {buildings, overlay, map} = scene, [x, y] = overlay.pixelAt(event.containerPoint);
  if (!buildings || x < 0 || y < 0 || x >= buildings.width || y >= buildings.height) return;
  const building = buildings.labels[y * buildings.width + x], area = pixelArea();
  if (!building) return map.closePopup();
  const size = buildings.sizes[building];
  L.popup({closeButton: false}).setLatLng(event.latlng)
    .setContent(area ? squareMetres(size * area) : `${size.toLocaleString("en")} pixels`).openOn(map);
}

async function download(button) {
  button.disabled = true;
  try {
    const response = await result(button.dataset.kind, query());
    const name = /filename="?([^";]+)/.exec(response.headers.get("Content-Disposition") || "");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = name ? name[1] : "buildings";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) { fail(error); }
  button.disabled = false;
}

// ------------------------------------------------------------------ hands

function restart() {
  forget();
  show("start");
  $("file").value = "";
  $("file").focus();
}

$("file").onchange = () => $("file").files[0] && start($("file").files[0]);
$("example").onclick = async () => {
  try {
    start(new File([await (await ask("static/example.tif")).blob()], "example.tif"));
  } catch (error) { fail(error); }
};
$("cancel").onclick = $("again").onclick = restart;
$("error").querySelector("button").onclick = () => { $("error").hidden = true; };
$("threshold").oninput = $("smallest").oninput = setThreshold;
$("opacity").oninput = $("outlines").onchange = setOpacity;
$("reset").onclick = () => { $("threshold").value = defaultLevel(); setThreshold(); };
$("ground").onsubmit = (event) => { event.preventDefault(); start(file, {pixel_size: $("metres").value}); };
for (const button of document.querySelectorAll("[data-kind]")) button.onclick = () => download(button);

addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files[0]) start(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => { if (event.clipboardData.files[0]) start(event.clipboardData.files[0]); });
addEventListener("keydown", (event) => {
  if (!scene || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input[type=number], input[type=password], button, [type=checkbox]")) return;
  if (event.key === "[" || event.key === "]") {
    $("threshold").value = Number($("threshold").value) + (event.key === "]" ? 5 : -5);
    setThreshold();
  } else if (event.key === " ") {
    event.preventDefault();
    scene.overlay.opacity = scene.overlay.opacity ? 0 : $("opacity").value / 100;
    scene.overlay.outlines = Boolean(scene.overlay.opacity) && $("outlines").checked;
    scene.overlay.draw();
  }
});
addEventListener("pagehide", (event) => { if (!event.persisted) forget(); });
