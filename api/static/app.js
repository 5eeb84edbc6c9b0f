// The page: photographs go up as jobs, the probabilities of each come back once, and everything else
// (threshold, outlines, figures, corrections) happens here.
"use strict";

const $ = (id) => document.getElementById(id);
const VIEW = 2048;  // pixels: photographs larger than this are shown reduced
let pile = [];  // the photographs of this visit: {file, name, query, job, kept, edits, told, done}
let shot = null, upload = null;  // the one that is shown or waited for; the request that sends one
let scene = null;  // what is shown of it: levels, buildings, figures, overlay, map
let pen = null;  // what draws a building at the moment

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
function send(body, query, tell) {
  return new Promise((resolve, reject) => {
    upload = new XMLHttpRequest();
    upload.open("POST", `buildings_mask/?${new URLSearchParams(query)}`);
    for (const [name, value] of Object.entries(headers({Prefer: "respond-async", Accept: "application/json"})))
      upload.setRequestHeader(name, value);
    upload.upload.onprogress = (event) => tell("Uploading", 100 * event.loaded / event.total);
    upload.upload.onload = () => tell("Waiting for a free place");
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

// Corrections are sent in pixels of the photograph itself, which may be shown reduced.
function result(kind, query = {}, edits = []) {
  const address = `jobs/${shot.job}/result?${new URLSearchParams({response_type: kind, ...query})}`;
  if (!edits.length) return ask(address);
  const sx = scene.figures.width / scene.levels.width, sy = scene.figures.height / scene.levels.height;
  const body = JSON.stringify({
    remove: edits.filter((edit) => edit.remove).map(({remove: [x, y]}) => [Math.floor((x + 0.5) * sx), Math.floor((y + 0.5) * sy)]),
    add: edits.filter((edit) => edit.add).map(({add}) => add.map(([x, y]) => [x * sx, y * sy])),
  });
  return ask(address, {method: "POST", headers: {"Content-Type": "application/json"}, body});
}

function forget(one) {
  if (one.job && !one.kept)
    fetch(`jobs/${one.job}`, {method: "DELETE", headers: headers(), keepalive: true}).catch(() => {});
  one.job = null;
}

function forgetAll() {
  upload?.abort();
  pile.forEach(forget);
  pile = [];
  shot = upload = null;
}

// ------------------------------------------------------------------ the three states

function show(state) {
  document.body.dataset.state = state;
  stopDrawing();
  if (scene) { scene.map.remove(); scene = null; }
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
  const again = pile.filter((one) => one.file).map((one) => one.file);
  show("start");
  $("token").showModal();
  $("token").onclose = () => {
    if (!$("token-value").value) return;
    sessionStorage.setItem("token", $("token-value").value);
    if (again.length) start(again); else openLink();
  };
}

// One photograph after the other: the first that is done is shown, the rest join the list.
async function start(files) {
  forgetAll();
  const mine = pile = [...files].map((file) => ({file, name: file.name, query: {}, edits: [], told: "waits"}));
  show("work");
  for (const one of mine) {
    shot ||= one;
    try {
      await look(one);
      if (pile !== mine) return;
      if (shot === one) await present(one);
    } catch (error) {
      if (pile !== mine || error.name === "AbortError") return;
      one.told = "failed";
      one.error = error;
      if (shot !== one) continue;
      shot = null;
      if (one === mine.at(-1) || error.status === 401) return fail(error);
    }
    list();
  }
}

async function look(one) {
  const tell = (what, percent) => {
    one.told = percent ? `${Math.round(percent)} %` : "…";
    if (shot === one) doing(what, percent);
    list();
  };
  if (document.body.dataset.state === "work") $("name").textContent = pile.length > 1 ? `${one.name} (${pile.indexOf(one) + 1} of ${pile.length})` : one.name;
  tell("Uploading", 0);
  one.job = (await send(one.file, one.query, tell)).id;
  for (;;) {
    const state = await (await ask(`jobs/${one.job}`)).json();
    if (!pile.includes(one)) throw new DOMException("cancelled", "AbortError");
    if (state.status === "failed") throw new Error(state.message);
    if (state.status === "successful") break;
    tell(state.status === "running" ? "Looking for buildings" : "Waiting for its turn", state.progress || undefined);
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
  one.told = "done";
  one.done = true;
}

// The list of photographs, where there are several; changed in place, so that focus stays.
function list() {
  const rows = $("pile");
  rows.hidden = pile.length < 2;
  while (rows.children.length > pile.length) rows.lastChild.remove();
  while (rows.children.length < pile.length) {
    const row = rows.appendChild(document.createElement("li")), button = document.createElement("button");
    button.className = "quiet";
    button.append(document.createElement("b"), document.createElement("span"));
    row.append(button);
  }
  pile.forEach((one, i) => {
    const button = rows.children[i].firstChild;
    button.setAttribute("aria-current", one === shot);
    button.disabled = one.told !== "failed" && !one.done;
    button.firstChild.textContent = one.name;
    button.lastChild.textContent = one.told;
    button.onclick = () => one.error ? fail(one.error) : present(one).catch(fail);
  });
}

// ------------------------------------------------------------------ the result

async function present(one, seen = {}) {
  shot = one;
  const [photo, probability, figures] = await Promise.all(
    [["photo", {size: VIEW}], ["probability", {size: VIEW}], ["json", {}]].map((what) => result(...what)));
  const [picture, levels, body] = [
    await createImageBitmap(await photo.blob()), await readLevels(await probability.blob()), await figures.json()];
  if (shot !== one) return;
  show("result");
  spread(picture, levels, body);
  $("threshold").value = seen.threshold || defaultLevel();
  $("smallest").value = !body.pixel_size ? 0 : seen.smallest ?? 10;  // specks are no buildings
  $("smallest").disabled = !body.pixel_size;
  $("undo").disabled = !one.edits.length;
  $("ground").hidden = Boolean(body.pixel_size) || !one.file;
  document.querySelector("[data-kind=geojson]").disabled = !body.corners;
  about();
  list();
  setOpacity();
  setThreshold();
  $("map").focus({preventScroll: true});
}

// Lay the photograph out on the map.
function spread(photo, levels, figures) {
  const {width, height} = levels, corners = figures.corners;
  const [below, credit] = basemap();
  const map = L.map("map", {
    crs: corners ? L.CRS.EPSG3857 : L.CRS.Simple, attributionControl: Boolean(corners && below),
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
  if (corners && below) {
    const safe = Object.assign(document.createElement("i"), {textContent: credit}).innerHTML;
    scene.below = L.tileLayer(below, {maxZoom: 24, maxNativeZoom: 19, attribution: safe});
  }
  $("below").parentElement.hidden = !scene.below;
  map.on("click", (event) => pen ? pen.corner(event.latlng) : measure(event.latlng));
  map.on("dblclick", () => pen?.finish());
}

// The map that the service was started with: an address and whom it is owed to.
function basemap() {
  const [address, ...credit] = document.querySelector("meta[name=basemap]").content.split(" ");
  return [address, credit.join(" ")];
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
  if (scene.below) $("below").checked ? scene.below.addTo(scene.map) : scene.below.remove();
}

let waiting = 0;
function setThreshold() {
  const level = Number($("threshold").value), smallest = Number($("smallest").value);
  $("threshold-value").textContent = (level / 255).toFixed(2);
  $("smallest-value").textContent = scene.figures.pixel_size ? `${smallest} m²` : "scale unknown";
  paintMask(scene.corrected || scene.levels, level, scene.mask);
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
  scene.corrected = edited(scene.levels, level, shot.edits);
  if (shot.edits.length) paintMask(scene.corrected, level, scene.mask);
  scene.buildings = findBuildings(scene.corrected, level);
  scene.overlay.edges = edgesOf(scene.buildings, least);
  scene.overlay.draw();
  const kept = scene.buildings.sizes.slice(1).filter((size) => size >= least);
  const pixels = kept.reduce((sum, size) => sum + size, 0);
  tell(kept.length, area && pixels * area, scene.reduced);
  if (!scene.reduced) return;
  try {  // what is shown is reduced: the service counts in full
    const exact = await (await result("json", query(), shot.edits)).json();
    if (scene === shown && Number($("threshold").value) === level) tell(exact.buildings, exact.built_area_m2);
  } catch (error) { if (error.status !== 422) fail(error); }
}

function tell(count, area, about = false) {
  $("count").textContent = (about ? "≈ " : "") + count.toLocaleString("en");
  $("count-word").textContent = count === 1 ? "building" : "buildings";
  $("area").textContent = area === null ? "" : `${squareMetres(area)} built over`;
  shot.told = $("count").textContent;
  list();
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
  const rows = [["Photograph", shot.name], ["Size", `${width} × ${height} px`]];
  if (size) rows.push(["Pixel", `${size.toPrecision(2)} m`]);
  if (corners) {
    const [lon, lat] = [0, 1].map((i) => corners.reduce((sum, corner) => sum + corner[i], 0) / 4);
    rows.push(["Centre", `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(4)}° ${lon < 0 ? "W" : "E"}`]);
  }
  rows.push(["Model", model.id]);
  $("about").replaceChildren(...rows.flatMap(([name, value]) =>
    [["dt", name], ["dd", value]].map(([tag, text]) => Object.assign(document.createElement(tag), {textContent: text}))));
}

function measure(latlng) {
  const {map} = scene, [building, place] = buildingAt(latlng), area = pixelArea();
  if (!building) return map.closePopup();
  const size = scene.buildings.sizes[building], about = document.createElement("div");
  about.append(area ? squareMetres(size * area) : `${size.toLocaleString("en")} pixels`);
  const button = Object.assign(document.createElement("button"), {textContent: "Remove", className: "quiet"});
  button.onclick = () => remove(place);
  about.append(button);
  L.popup({closeButton: false, autoPan: false}).setLatLng(latlng).setContent(about).openOn(map);
}

// The building at a place of the map, 0 where there is none, and its pixel.
function buildingAt(latlng) {
  const {buildings, overlay, map} = scene, [x, y] = overlay.pixelAt(map.latLngToContainerPoint(latlng));
  const inside = buildings && x >= 0 && y >= 0 && x < buildings.width && y < buildings.height;
  return [inside ? buildings.labels[y * buildings.width + x] : 0, [x, y]];
}

// ------------------------------------------------------------------ corrections

function correct(edits) {
  shot.edits = edits;
  $("undo").disabled = !edits.length;
  scene.map.closePopup();
  setThreshold();
}

// A drawn building goes as it came; one that was found is remembered as removed.
function remove([x, y]) {
  const inside = ({add}) => {
    const drawn = new Uint8Array(scene.levels.levels.length);
    fill(drawn, scene.levels.width, scene.levels.height, add);
    return drawn[y * scene.levels.width + x];
  };
  const drawn = shot.edits.find((edit) => edit.add && inside(edit));
  correct(drawn ? shot.edits.filter((edit) => edit !== drawn) : [...shot.edits, {remove: [x, y]}]);
}

function draw() {
  if (pen) return pen.corners.length > 2 ? pen.finish() : stopDrawing();
  scene.map.closePopup();
  pen = new Pen(scene.map, scene.overlay, (corners) => { stopDrawing(); correct([...shot.edits, {add: corners}]); });
  document.body.classList.add("drawing");
  $("draw").setAttribute("aria-pressed", true);
  $("draw").textContent = "Finish";
  $("hint").textContent = "Click its corners; a double click or Finish closes it, Escape gives up.";
  $("map").focus({preventScroll: true});
}

function stopDrawing() {
  pen?.stop();
  pen = null;
  document.body.classList.remove("drawing");
  $("draw").setAttribute("aria-pressed", false);
  $("draw").textContent = "Draw one";
  $("hint").textContent = "Click a building that is none to remove it.";
}

// ------------------------------------------------------------------ a link to what is shown

async function share() {
  shot.kept = true;  // not forgotten when the page is left
  const told = {job: shot.job, name: shot.name, threshold: $("threshold").value, smallest: $("smallest").value};
  if (shot.edits.length) told.edits = JSON.stringify(shot.edits);
  history.replaceState(null, "", `#${new URLSearchParams(told)}`);
  try {
    await navigator.clipboard.writeText(location.href);
    $("shared").textContent = "Copied. Whoever has the link sees this photograph, until the service forgets it.";
  } catch {  // only pages that came by TLS, or from this machine, may
    $("shared").textContent = "The link is in the address bar.";
  }
}

async function openLink() {
  const told = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!/^[0-9a-f]{32}$/.test(told.job || "")) return;
  try {
    const one = {job: told.job, name: told.name || "", kept: true, edits: JSON.parse(told.edits || "[]"), told: "…"};
    pile = [one];
    show("work");
    doing("Fetching the result");
    await present(one, {threshold: Number(told.threshold), smallest: Number(told.smallest)});
  } catch (error) {
    fail(error.status === 404 ? new Error("What this link showed has been forgotten.") : error);
  }
}

async function download(button) {
  button.disabled = true;
  try {
    const response = await result(button.dataset.kind, query(), shot.edits);
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
  forgetAll();
  history.replaceState(null, "", location.pathname);
  show("start");
  $("file").value = "";
  $("file").focus();
}

// Another look at the photograph that is shown, its pixels being so large.
async function measureAgain(metres) {
  const one = shot;
  forget(one);
  Object.assign(one, {query: {pixel_size: metres}, edits: []});
  show("work");
  try {
    await look(one);
    await present(one);
  } catch (error) { fail(error); }
}

$("file").onchange = () => $("file").files[0] && start($("file").files);
$("example").onclick = async () => {
  try {
    start([new File([await (await ask("static/example.tif")).blob()], "example.tif")]);
  } catch (error) { fail(error); }
};
$("cancel").onclick = $("again").onclick = restart;
$("error").querySelector("button").onclick = () => { $("error").hidden = true; };
$("threshold").oninput = $("smallest").oninput = setThreshold;
$("opacity").oninput = $("outlines").onchange = $("below").onchange = setOpacity;
$("reset").onclick = () => { $("threshold").value = defaultLevel(); setThreshold(); };
$("draw").onclick = draw;
$("undo").onclick = () => correct(shot.edits.slice(0, -1));
$("share").onclick = share;
$("ground").onsubmit = (event) => { event.preventDefault(); measureAgain($("metres").value); };
for (const button of document.querySelectorAll("[data-kind]")) button.onclick = () => download(button);

addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files[0]) start(event.dataTransfer.files);
});
addEventListener("paste", (event) => { if (event.clipboardData.files[0]) start(event.clipboardData.files); });
addEventListener("keydown", (event) => {
  if (!scene || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && pen) return stopDrawing();
  if (event.target.matches("input[type=number], input[type=password], button, [type=checkbox]")) return;
  if (event.key === "[" || event.key === "]") {
    $("threshold").value = Number($("threshold").value) + (event.key === "]" ? 5 : -5);
    setThreshold();
  } else if (event.key === " ") {
    event.preventDefault();
    scene.overlay.opacity = scene.overlay.opacity ? 0 : $("opacity").value / 100;
    scene.overlay.outlines = Boolean(scene.overlay.opacity) && $("outlines").checked;
    scene.overlay.draw();
  } else if (event.target === $("map")) onMap(event.key);
});

// With the keyboard, the middle of the map is where a mouse would be.
function onMap(key) {
  const middle = scene.map.getCenter(), [building, place] = buildingAt(middle);
  if (key === "Enter") pen ? pen.corner(middle) : measure(middle);
  else if (key === "Delete" && building && !pen) remove(place);
}

addEventListener("pagehide", (event) => { if (!event.persisted) forgetAll(); });
addEventListener("hashchange", openLink);
openLink();
