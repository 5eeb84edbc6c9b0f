// A Leaflet layer that draws a photograph, its mask and its outlines at three known corners, so
// that a picture in any projection, rotated too, lies where it belongs.
"use strict";

const Overlay = L.Layer.extend({
  initialize(photo, size, corners) {  // size: [width, height]; corners: upper left, right; lower left
    Object.assign(this, {photo, size, corners, mask: null, edges: null, opacity: 0.45, outlines: true});
  },

  onAdd(map) {
    this.canvas = L.DomUtil.create("canvas", "leaflet-zoom-hide", map.getPane("overlayPane"));
    map.on("move zoom viewreset resize", this.draw, this);
    this.draw();
  },

  onRemove(map) {
    map.off("move zoom viewreset resize", this.draw, this);
    this.canvas.remove();
  },

  // From pixels of the photograph to pixels of the view: [a, b, c, d, e, f] as canvas takes it.
  matrix() {
    const [o, x, y] = this.corners.map((corner) => this._map.latLngToContainerPoint(corner));
    const [w, h] = this.size;
    return [(x.x - o.x) / w, (x.y - o.y) / w, (y.x - o.x) / h, (y.y - o.y) / h, o.x, o.y];
  },

  // Where in the photograph a point of the view is, in pixels; and the pixel it lies in.
  placeAt(point) {
    const at = new DOMMatrix(this.matrix()).inverse().transformPoint(new DOMPoint(point.x, point.y));
    return [at.x, at.y];
  },

  pixelAt(point) { return this.placeAt(point).map(Math.floor); },

  draw() {
    if (!this._map) return;
    const view = this._map.getSize(), ratio = window.devicePixelRatio || 1;
    L.DomUtil.setPosition(this.canvas, this._map.containerPointToLayerPoint([0, 0]));
    this.canvas.width = view.x * ratio;
    this.canvas.height = view.y * ratio;
    this.canvas.style.width = `${view.x}px`;
    this.canvas.style.height = `${view.y}px`;
    const matrix = this.matrix(), context = this.canvas.getContext("2d");
    const scale = Math.hypot(matrix[0], matrix[1]);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.transform(...matrix);
    context.imageSmoothingEnabled = scale < 2;
    context.drawImage(this.photo, 0, 0, ...this.size);
    if (this.mask && this.opacity) {
      context.globalAlpha = this.opacity;
      context.imageSmoothingEnabled = scale < 1;
      context.drawImage(this.mask, 0, 0, ...this.size);
      context.globalAlpha = 1;
    }
    if (this.edges && this.outlines) this.stroke(context, scale);
  },

  stroke(context, scale) {
    const path = new Path2D(), edges = this.edges;
    for (let i = 0; i < edges.length; i += 4) {
      path.moveTo(edges[i], edges[i + 1]);
      path.lineTo(edges[i + 2], edges[i + 3]);
    }
    context.lineCap = "square";
    for (const [colour, width] of [["#0009", 3], ["#ffd84d", 1.25]]) {
      context.strokeStyle = colour;
      context.lineWidth = width / scale;
      context.stroke(path);
    }
  },
});
