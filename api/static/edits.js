// What a person corrects: buildings that are none are removed, missing ones are drawn.
// An edit is {remove: [x, y]}, any pixel of the building, or {add: [[x, y], ...]}, its corners; both
// in pixels of the photograph as it is shown. The service is sent the same and does the same.
"use strict";

const MOST = 50;  // corners of a building: what the service takes

// The levels at a threshold with the edits made: removed buildings are 0, drawn ones 255.
function edited(levels, threshold, edits) {
  if (!edits.length) return levels;
  const {width, height} = levels, {labels} = findBuildings(levels, threshold);
  const gone = new Set(edits.filter((edit) => edit.remove)
    .map(({remove: [x, y]}) => labels[y * width + x]).filter(Boolean));
  const changed = levels.levels.slice();
  for (let i = 0; i < changed.length; i++) if (gone.has(labels[i])) changed[i] = 0;
  for (const {add} of edits) if (add) fill(changed, width, height, add);
  return {levels: changed, width, height};
}

// Every pixel whose centre lies in the polygon becomes 255: row by row, between pairs of crossings.
function fill(levels, width, height, corners) {
  for (let y = 0; y < height; y++) {
    const crossings = [];
    corners.forEach(([x0, y0], i) => {
      const [x1, y1] = corners[(i + 1) % corners.length], at = y + 0.5;
      if (y0 <= at !== y1 <= at) crossings.push(x0 + (at - y0) * (x1 - x0) / (y1 - y0));
    });
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const from = Math.max(0, Math.ceil(crossings[i] - 0.5)), to = Math.min(width, Math.ceil(crossings[i + 1] - 0.5));
      if (from < to) levels.fill(255, y * width + from, y * width + to);
    }
  }
}

// Drawing a building on the map, corner by corner; `done` gets its corners, in pixels.
class Pen {
  constructor(map, overlay, done) {
    Object.assign(this, {map, overlay, done, corners: [], line: L.polyline([], {color: "#ffd84d", weight: 2, dashArray: "5 4"}).addTo(map)});
    map.doubleClickZoom.disable();
  }

  corner(latlng) {
    const [x, y] = this.overlay.placeAt(this.map.latLngToContainerPoint(latlng));
    const [first] = this.corners;
    const near = first && this.map.latLngToContainerPoint(this.line.getLatLngs()[0])
      .distanceTo(this.map.latLngToContainerPoint(latlng)) < 10;
    if ((near && this.corners.length > 2) || this.corners.length === MOST) return this.finish();
    this.corners.push([Math.round(x * 10) / 10, Math.round(y * 10) / 10]);
    this.line.addLatLng(latlng);
  }

  finish() {
    const corners = this.corners;
    this.stop();
    if (corners.length > 2) this.done(corners);
  }

  stop() {
    this.line.remove();
    this.map.doubleClickZoom.enable();
    this.corners = [];
  }
}
