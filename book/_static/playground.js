/* The playground of the book: paths of optimizers on test surfaces, computed in the browser.

   The first half computes and touches no page: surfaces, noise, clipping, methods, run(), the address.
   The second half draws and listens. The letters are those of the notation page. A test runs the first
   half beside torch.optim and support.optim; both halves are one file, so that it works without a server. */
"use strict";
{
  // ---- vectors
  const ZERO = [0, 0];

  /** Apply a function to each of the two coordinates of vectors. */
  const each = (f, ...vectors) => [0, 1].map((j) => f(...vectors.map((vector) => vector[j])));
  const add = (a, b) => a + b;
  const norm = ([x, y]) => Math.sqrt(x * x + y * y);

  // ---- surfaces
  const CONDITION = 50;
  const TILT = 0.3;

  /** The x of a minimum of the double well, a root of 4x³ - 4x + tilt: the right one (0) or the left (2). */
  const valley = (k) =>
    (2 / Math.sqrt(3)) * Math.cos((Math.acos((-TILT * Math.sqrt(27)) / 8) - 2 * Math.PI * k) / 3);

  /* Formula, gradient, frame and minima (the lowest first) as in support.surfaces. `smoothness` is the largest
     curvature in the frame, rounded up; start, steps, `lr` (step size where a step is a multiple of the
     gradient) and `move` (where it has a size of its own) are what the page shows first. */
  const SURFACES = {
    ravine: {
      name: "ravine", formula: "½ (x² + 50 y²)",
      value: (x, y) => (x ** 2 + CONDITION * y ** 2) / 2,
      gradient: (x, y) => [x, CONDITION * y],
      domain: [[-1.2, 1.2], [-0.6, 0.6]], minima: [[0, 0]],
      smoothness: 50, start: [-1.1, 0.4], steps: 60, lr: 0.025, move: 0.1,
    },
    double_well: {
      name: "double well", formula: "(x² − 1)² + 0.3 x + y²",
      value: (x, y) => (x ** 2 - 1) ** 2 + TILT * x + y ** 2,
      gradient: (x, y) => [4 * x * (x ** 2 - 1) + TILT, 2 * y],
      domain: [[-1.8, 1.8], [-1.2, 1.2]], minima: [[valley(2), 0], [valley(0), 0]],
      smoothness: 35, start: [1.7, 0.9], steps: 60, lr: 0.025, move: 0.1,
    },
    rosenbrock: {
      name: "Rosenbrock", formula: "(1 − x)² + 100 (y − x²)²",
      value: (x, y) => (1 - x) ** 2 + 100 * (y - x ** 2) ** 2,
      gradient: (x, y) => [-2 * (1 - x) - 400 * x * (y - x ** 2), 200 * (y - x ** 2)],
      domain: [[-2, 2], [-1, 3]], minima: [[1, 1]],
      smoothness: 5327, start: [-1.5, 2], steps: 300, lr: 0.0005, move: 0.1,
    },
    himmelblau: {
      name: "Himmelblau", formula: "(x² + y − 11)² + (x + y² − 7)²",
      value: (x, y) => (x ** 2 + y - 11) ** 2 + (x + y ** 2 - 7) ** 2,
      gradient: (x, y) => {
        const first = x ** 2 + y - 11, second = x + y ** 2 - 7;
        return [4 * x * first + 2 * second, 2 * first + 4 * y * second];
      },
      domain: [[-5, 5], [-5, 5]],
      minima: [[3, 2], [-2.805118, 3.131313], [-3.77931, -3.283186], [3.584428, -1.848127]],
      smoothness: 327, start: [0, 0], steps: 60, lr: 0.005, move: 0.2,
    },
    saddle: {
      name: "saddle", formula: "x² − y²",
      value: (x, y) => x ** 2 - y ** 2,
      gradient: (x, y) => [2 * x, -2 * y],
      domain: [[-1.5, 1.5], [-1.5, 1.5]], minima: [],
      smoothness: 2, start: [1.2, 0.001], steps: 60, lr: 0.1, move: 0.05,
    },
  };

  /** The value f* of the lowest minimum; null on a surface that has none. */
  const lowest = ({ minima, value }) => (minima.length ? value(...minima[0]) : null);

  // ---- noise, clipping
  /** Return a source of numbers in [0, 1), the same for the same seed (mulberry32). */
  function uniform(seed) {
    let a = seed >>> 0;
    return () => {
      a = (a + 0x6d2b79f5) | 0;
      let t = Math.imul(a ^ (a >>> 15), 1 | a);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  /** Return a source of vectors of two independent standard normal numbers (Box and Muller). */
  function normal(seed) {
    const draw = uniform(seed);
    return () => {
      const radius = Math.sqrt(-2 * Math.log(1 - draw()));
      const angle = 2 * Math.PI * draw();
      return [radius * Math.cos(angle), radius * Math.sin(angle)];
    };
  }

  /* Clipping by the norm, min{1, c/‖g‖} g, where an infinite norm gives NaN, and of each coordinate. */
  const CLIP = {
    norm: (g, c) => {
      const size = norm(g), factor = size === Infinity ? NaN : Math.min(1, c / size);
      return each((v) => factor * v, g);
    },
    coordinate: (g, c) => each((v) => Math.min(c, Math.max(-c, v)), g),
  };

  /** Clip to a level above 0; the level 0 means that nothing is clipped. */
  const clip = (g, level, kind = "norm") => (level > 0 ? CLIP[kind](g, level) : g);

  // ---- methods
  /* Each method returns a function that makes the next point from θ and the gradient g(·) of this step,
     and keeps its own state, which starts at 0. */

  const gradientDescent = ({ lr }) => (theta, gradient) =>
    each((x, g) => x - lr * g, theta, gradient(theta));

  const heavyBall = (nesterov) => ({ lr, momentum }) => {
    let v = ZERO;
    return (theta, gradient) => {
      const g = gradient(theta);
      v = each((v, g) => momentum * v + g, v, g);
      return each((x, g, v) => x - lr * (nesterov ? g + momentum * v : v), theta, g, v);
    };
  };

  /** Return beta old + (1 - beta) fresh. */
  const average = (beta, old, fresh) => each((o, f) => beta * o + (1 - beta) * f, old, fresh);
  const squared = (g) => each((v) => v * v, g);

  const scaled = (gather) => ({ lr, beta2, eps }) => {
    let s = ZERO;
    return (theta, gradient) => {
      const g = gradient(theta);
      s = gather(s, squared(g), beta2);
      return each((x, g, s) => x - (lr * g) / (Math.sqrt(s) + eps), theta, g, s);
    };
  };
  const adagrad = scaled((s, square) => each(add, s, square));
  const rmsprop = scaled((s, square, beta2) => average(beta2, s, square));

  const adadelta = ({ lr, beta2, eps }) => {
    let s = ZERO, q = ZERO;
    return (theta, gradient) => {
      const g = gradient(theta);
      s = average(beta2, s, squared(g));
      const update = each((g, s, q) => (Math.sqrt(q + eps) / Math.sqrt(s + eps)) * g, g, s, q);
      q = average(beta2, q, squared(update));
      return each((x, u) => x - lr * u, theta, update);
    };
  };

  const adam = (amsgrad = false) => ({ lr, beta1, beta2, eps, weight_decay = 0 }) => {
    let t = 0, m = ZERO, s = ZERO, largest = ZERO;
    return (theta, gradient) => {
      const g = gradient(theta);
      m = average(beta1, m, g);
      s = average(beta2, s, squared(g));
      largest = each(Math.max, largest, s);
      t += 1;
      return each((x, m, s) => {
        const mHat = m / (1 - beta1 ** t), sHat = s / (1 - beta2 ** t);
        return x - lr * weight_decay * x - (lr * mHat) / (Math.sqrt(sHat) + eps);
      }, theta, m, amsgrad ? largest : s);
    };
  };

  const nadam = ({ lr, beta1, beta2, eps }) => {
    let t = 0, m = ZERO, s = ZERO, product = 1;
    const beta = (k) => beta1 * (1 - 0.5 * 0.96 ** (0.004 * k));
    return (theta, gradient) => {
      const g = gradient(theta);
      m = average(beta1, m, g);
      s = average(beta2, s, squared(g));
      t += 1;
      product *= beta(t);
      const own = (1 - beta(t)) / (1 - product), next = beta(t + 1) / (1 - product * beta(t + 1));
      return each((x, g, m, s) => {
        const sHat = s / (1 - beta2 ** t);
        return x - (lr * (own * g + next * m)) / (Math.sqrt(sHat) + eps);
      }, theta, g, m, s);
    };
  };

  const lion = ({ lr, beta1, beta2, weight_decay }) => {
    let m = ZERO;
    return (theta, gradient) => {
      const g = gradient(theta), direction = average(beta1, m, g);
      m = average(beta2, m, g);
      return each((x, d) => x - lr * (Math.sign(d) + weight_decay * x), theta, direction);
    };
  };

  const clippedSstm = ({ L, a, B }) => {
    let t = 0, A = 0, y, z;
    const alpha = (k) => (k + 1) / (2 * a * L);
    return (theta, gradient) => {
      if (t === 0) y = z = theta;
      t += 1;
      const g = clip(gradient(theta), B / alpha(t));
      z = each((z, g) => z - alpha(t) * g, z, g);
      y = each((y, z) => (A * y + alpha(t) * z) / (A + alpha(t)), y, z);
      A += alpha(t);
      return each((y, z) => (A * y + alpha(t + 1) * z) / (A + alpha(t + 1)), y, z);
    };
  };

  const sam = ({ lr, rho }) => (theta, gradient) => {
    const g = gradient(theta), size = norm(g);
    const e = each((v) => (size === 0 ? 0 : (rho * v) / size), g);
    return each((x, g) => x - lr * g, theta, gradient(each(add, theta, e)));
  };

  const MOMENTS = { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

  /* `optimizer` is the name in support.optim.OPTIMIZERS; `hyper` holds torch's or support's own default values,
     all but lr. `step` says what a step size is: a factor of the "gradient", a "move", a "pure" number, and
     `factor` fits it to the surface. */
  const METHODS = {
    sgd: { name: "gradient descent", start: gradientDescent, step: "gradient", hyper: {} },
    momentum: { name: "momentum", start: heavyBall(false), step: "gradient", hyper: { momentum: 0.9 } },
    nesterov: { name: "Nesterov", start: heavyBall(true), step: "gradient", hyper: { momentum: 0.9 } },
    adagrad: { name: "AdaGrad", start: adagrad, step: "move", factor: 3, hyper: { eps: 1e-10 } },
    rmsprop: { name: "RMSprop", start: rmsprop, step: "move", factor: 0.3, hyper: { beta2: 0.99, eps: 1e-8 } },
    adadelta: { name: "Adadelta", start: adadelta, step: "pure", hyper: { beta2: 0.9, eps: 1e-6 } },
    adam: { name: "Adam", start: adam(), step: "move", hyper: MOMENTS },
    amsgrad: { name: "AMSGrad", start: adam(true), step: "move", hyper: MOMENTS },
    nadam: { name: "NAdam", start: nadam, step: "move", hyper: MOMENTS },
    adamw: { name: "AdamW", start: adam(), step: "move", hyper: { ...MOMENTS, weight_decay: 0.01 } },
    lion: {
      name: "Lion", start: lion, step: "move", factor: 0.5, hyper: { beta1: 0.9, beta2: 0.99, weight_decay: 0 },
    },
    clipped_sgd: {
      name: "clipped SGD, by norm", start: heavyBall(false), step: "gradient", hyper: { momentum: 0 }, clips: true,
    },
    clipped_sgd_coordinate: {
      name: "clipped SGD, by coordinate", optimizer: "clipped_sgd", start: heavyBall(false), step: "gradient",
      hyper: { momentum: 0 }, clips: true, kind: "coordinate",
    },
    clipped_sstm: { name: "clipped-SSTM", start: clippedSstm, hyper: { L: 1, a: 1, B: 0 } },
    sam: { name: "SAM around gradient descent", start: sam, step: "gradient", hyper: { rho: 0.05 } },
  };

  // ---- paths
  const FAR = 1e6; // farther than this a path is not drawn, as in support.plotting

  /** Return all settings with which a method starts on a surface. */
  function defaults(surface, method) {
    const { start, steps, smoothness, ...sizes } = SURFACES[surface];
    const { step, factor = 1, hyper, clips = false } = METHODS[method];
    const size = { gradient: sizes.lr, move: sizes.move, pure: 1 }[step];
    const level = clips ? Number((sizes.move / sizes.lr).toPrecision(1)) : 0;
    const common = { noise: 0, seed: 0, clip: level, x: start[0], y: start[1], steps };
    const own = { ...hyper, ...(step ? { lr: Number((factor * size).toPrecision(2)) } : { L: smoothness }) };
    return { surface, method, ...own, ...common };
  }

  /** Run a method on a surface (both by name): T + 1 points and values, and when the path left the frame. */
  function run(name, settings) {
    const surface = SURFACES[name], method = METHODS[settings.method];
    const own = { ...defaults(name, settings.method), ...settings };
    const step = method.start(own), draw = normal(own.seed);
    const points = [[own.x, own.y]];
    for (let t = 0; t < own.steps; t += 1) {
      const xi = each((v) => own.noise * v, draw()); // one a step: SAM's two gradients share it
      const gradient = (point) => clip(each(add, surface.gradient(...point), xi), own.clip, method.kind);
      points.push(step(points[t], gradient));
    }
    const values = points.map((point) => surface.value(...point));
    return { points, values, ...whereabouts(surface, points) };
  }

  /** Return the first steps outside the frame (`left`) and beyond 10⁶ (`far`), -1 if never, and how it ends. */
  function whereabouts({ domain: [[left, right], [bottom, top]] }, points) {
    const inside = ([x, y]) => left <= x && x <= right && bottom <= y && y <= top;
    const near = ([x, y]) => Math.abs(x) < FAR && Math.abs(y) < FAR;
    return {
      left: points.findIndex((point) => !inside(point)),
      far: points.findIndex((point) => !near(point)),
      back: inside(points[points.length - 1]),
    };
  }

  // ---- controls
  /** Scale of a slider on which every value is two digits times a power of ten; with zero, the first is 0. */
  function logarithmic(low, high, { zero = false } = {}) {
    const first = zero ? 1 : 0, min = Number(`1e${low}`);
    return {
      min: zero ? 0 : min, max: Number(`1e${high}`), last: 90 * (high - low) + first,
      value(position) {
        const notch = position - first;
        return notch < 0 ? 0 : Number(`${10 + (notch % 90)}e${low + Math.floor(notch / 90) - 1}`);
      },
      position(value) {
        if (value < min) return 0;
        const power = Math.floor(Math.log10(value) + 1e-12);
        return Math.round(90 * (power - low) + 10 * (value / 10 ** power - 1)) + first;
      },
    };
  }

  /** Scale from 0 towards 1, on which 0.9, 0.99 and 0.999 are equally far apart. */
  function fading(places) {
    const rest = logarithmic(-places, 0), { last } = rest, max = Number((1 - rest.min).toFixed(places));
    return {
      min: 0, max, last,
      value: (position) => Number((1 - rest.value(last - position)).toFixed(places + 1)),
      position: (value) => last - rest.position(1 - value),
    };
  }

  /** Scale with equal steps. */
  const linear = (min, max, step) => ({
    min, max, last: Math.round((max - min) / step), whole: step === 1,
    value: (position) => Number((min + position * step).toFixed(6)),
    position: (value) => Math.round((value - min) / step),
  });

  const CONTROLS = {
    lr: { label: "step size η", sign: "η", ...logarithmic(-5, 1) },
    momentum: { label: "momentum γ", sign: "γ", ...fading(3) },
    beta1: { label: "decay β₁", sign: "β₁", ...fading(3) },
    beta2: { label: "decay β₂", sign: "β₂", ...fading(4) },
    eps: { label: "constant ϵ", sign: "ϵ", ...logarithmic(-10, 0) },
    weight_decay: { label: "weight decay ω", sign: "ω", ...logarithmic(-3, 1, { zero: true }) },
    rho: { label: "radius ρ", sign: "ρ", ...logarithmic(-3, 1, { zero: true }) },
    L: { label: "smoothness L", sign: "L", ...logarithmic(0, 4) },
    a: { label: "step parameter a", sign: "a", ...logarithmic(-1, 3) },
    B: { label: "constant B (0: off)", sign: "B", ...logarithmic(-3, 2, { zero: true }) },
    noise: { label: "noise (0: off)", sign: "noise", ...logarithmic(-2, 2, { zero: true }) },
    seed: { label: "seed of the noise", sign: "seed", ...linear(0, 999, 1) },
    clip: { label: "clip level c (0: off)", sign: "c", ...logarithmic(-2, 3, { zero: true }) },
    x: { label: "start x", sign: "x" },
    y: { label: "start y", sign: "y" },
    steps: { label: "number of steps T", sign: "T", ...linear(1, 500, 1) },
  };
  const COMMON = ["noise", "seed", "clip", "x", "y", "steps"];

  /** The hyper-parameters of a method, and all settings that a path with it has. */
  const hyperOf = (method) => [...(METHODS[method].step ? ["lr"] : []), ...Object.keys(METHODS[method].hyper)];
  const settingsOf = (method) => [...hyperOf(method), ...COMMON];

  /** The scale of a control; those of the start point depend on the surface. */
  function scaleOf(key, surface) {
    const axis = ["x", "y"].indexOf(key);
    return axis < 0 ? CONTROLS[key] : linear(...SURFACES[surface].domain[axis], 0.01);
  }

  /** Return the number that a text says, null if it is none or out of the range of the control. */
  function read(key, surface, text) {
    const { min, max, whole } = scaleOf(key, surface), value = Number(text);
    const right = text.trim() !== "" && min <= value && value <= max && !(whole && value % 1);
    return right ? value : null;
  }

  // ---- address
  const MOST = 6; // kept paths: one colour each

  /** Put pairs [name, text] into settings; what is wrong leaves the default and is noted. */
  function take(settings, pairs, notes) {
    for (const [key, text] of pairs) {
      if (![...Object.keys(CONTROLS), "method"].includes(key)) notes.push(`there is no setting “${key}”`);
      if (!settingsOf(settings.method).includes(key)) continue;
      const { min, max } = scaleOf(key, settings.surface), value = read(key, settings.surface, text);
      const wanted = `a ${CONTROLS[key].whole ? "whole number" : "number"} from ${min} to ${max}`;
      if (value !== null) settings[key] = value;
      else notes.push(`the setting ${key} must be ${wanted}, not “${text}”; it is ${settings[key]}`);
    }
    return settings;
  }

  /** Return a name that exists; one that does not is noted and replaced. */
  function choose(kind, known, name, otherwise, notes) {
    if (Object.keys(known).includes(name)) return name;
    if (name !== null) notes.push(`there is no ${kind} “${name}”; ${otherwise} is taken`);
    return otherwise;
  }

  /** What a kept path has where the address says nothing: the shown path's settings, its method's own. */
  const inherited = (shown, method) => {
    const common = Object.fromEntries(COMMON.map((key) => [key, shown[key]]));
    return { ...defaults(shown.surface, method), ...common };
  };

  /** Read an address fragment: the shown path's settings, the kept ones, the step shown (null: the last). */
  function parse(fragment) {
    const notes = [], query = new URLSearchParams(fragment.replace(/^#/, ""));
    const surface = choose("surface", SURFACES, query.get("surface"), "ravine", notes);
    const method = choose("method", METHODS, query.get("method"), "momentum", notes);
    const pairs = [...query].filter(([key]) => !["surface", "method", "keep", "at"].includes(key));
    const shown = take(defaults(surface, method), pairs, notes);
    const texts = query.getAll("keep");
    if (texts.length > MOST) notes.push(`at most ${MOST} paths are kept`);
    const kept = texts.slice(0, MOST).map((text) => {
      const parts = text.split(",").map((part) => [...part.split(":"), ""].slice(0, 2));
      const name = choose("method", METHODS, new Map(parts).get("method") ?? null, method, notes);
      return take(inherited(shown, name), parts, notes);
    });
    const at = query.get("at") ?? `${shown.steps}`, whole = /^\d+$/.test(at);
    if (!whole) notes.push(`the setting at must be a step, not “${at}”`);
    return { shown, kept, at: whole && Number(at) < shown.steps ? Number(at) : null, notes };
  }

  /** Write an address fragment, the reverse of parse. */
  function format({ shown, kept = [], at = null }) {
    const own = settingsOf(shown.method).map((key) => `${key}=${shown[key]}`);
    const others = kept.map((settings) => {
      const usual = inherited(shown, settings.method);
      const differing = settingsOf(settings.method).filter((key) => settings[key] !== usual[key]);
      return ["keep=method:" + settings.method, ...differing.map((key) => `${key}:${settings[key]}`)].join(",");
    });
    const head = [`surface=${shown.surface}`, `method=${shown.method}`];
    return [...head, ...own, ...others, ...(at === null ? [] : [`at=${at}`])].join("&");
  }

  window.playground = { SURFACES, METHODS, CONTROLS, defaults, hyperOf, lowest, normal, run, parse, format };

  // ==== the page
  const root = document.getElementById("pg");
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const plane = part("plane"), curve = part("curve"), controls = {};
  let page = parse(""); // what the address says: shown, kept, at
  let ground = null; // the plane's coordinates, and what moves on it
  let playing = 0, writing = 0;

  /** Make an element of the page, and one of a drawing. */
  function html(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }
  function svg(tag, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    element.append(...children);
    return element;
  }

  const raised = (k) => String(k).replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]);
  const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

  /** Write a number with three digits. */
  function short(v) {
    const k = v === 0 ? 0 : Math.floor(Math.log10(Math.abs(v)));
    const text = k < -3 || k > 4 ? `${(v / 10 ** k).toFixed(1)}·10${raised(k)}` : `${Number(v.toPrecision(3))}`;
    return text.replace("-", "−");
  }

  // ---- drawing
  const CELLS = 240; // of the grid for contours, in each direction
  const grounds = {}; // surface -> contour lines, shade and highest value, made once

  /** Return the lines between crossings of a level with the sides of a cell whose corners are [i, j, value]. */
  function lineThrough(corners, level) {
    const crossings = corners.flatMap(([i, j, v], k) => {
      const [i2, j2, w] = corners[(k + 1) % 4], share = (level - v) / (w - v);
      if (v < level === w < level) return [];
      return `${(i + share * (i2 - i)).toFixed(2)} ${(j + share * (j2 - j)).toFixed(2)}`;
    });
    return crossings.map((point, k) => (k % 2 ? "L" : "M") + point).join("");
  }

  /** Return the contour lines of a grid of values as a path, with the levels of support.plotting. */
  function contours(values, low, high) {
    const levels = Array.from({ length: 24 }, (_, k) => low + (high - low) * ((k + 1) / 24) ** 3);
    const lines = [];
    for (let j = 0; j < CELLS; j += 1) {
      for (let i = 0; i < CELLS; i += 1) {
        const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]].map(([i, j]) => [i, j, values[j][i]]);
        const heights = corners.map((corner) => corner[2]);
        const from = Math.min(...heights), to = Math.max(...heights);
        lines.push(...levels.filter((l) => from < l && l <= to).map((l) => lineThrough(corners, l)));
      }
    }
    return lines.join("");
  }

  /** Return a picture of a grid of values, transparent on the heights and tinted in the valleys. */
  function shade(values, low, high) {
    const canvas = html("canvas", { width: CELLS + 1, height: CELLS + 1 }), context = canvas.getContext("2d");
    const image = context.createImageData(CELLS + 1, CELLS + 1);
    values.flat().forEach((v, k) => {
      image.data.set([0, 114, 178, 80 * (1 - Math.cbrt((v - low) / (high - low)))], 4 * k);
    });
    context.putImageData(image, 0, 0);
    return canvas.toDataURL();
  }

  /** Return what is drawn of a surface. */
  function groundOf(name) {
    if (grounds[name]) return grounds[name];
    const { value, domain: [[left, right], [bottom, top]] } = SURFACES[name];
    const nodes = Array.from({ length: CELLS + 1 }, (_, k) => k / CELLS);
    const row = (v) => nodes.map((u) => value(left + u * (right - left), top - v * (top - bottom)));
    const values = nodes.map(row), low = Math.min(...values.flat()), high = Math.max(...values.flat());
    grounds[name] = { low, high, lines: contours(values, low, high), picture: shade(values, low, high) };
    return grounds[name];
  }

  /** Return round numbers in an interval. */
  function ticks([low, high], most) {
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((size) => size >= raw * 0.999);
    const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(9)));
  }

  /** Draw empty axes into an SVG element; return a function that places data in the inner part, and that part. */
  function axes(element, xAxis, yAxis) {
    const { width, height } = element.getBoundingClientRect();
    const box = { x: 52, y: 8, width: Math.max(width - 68, 10), height: Math.max(height - 50, 10) };
    const share = ({ range: [low, high] }, v) => (v - low) / (high - low);
    const place = ([x, y]) => [share(xAxis, x) * box.width, (1 - share(yAxis, y)) * box.height];
    const inner = svg("svg", box), bottom = box.y + box.height, middle = box.y + box.height / 2;
    const text = (x, y, anchor, words, more = {}) => svg("text", { x, y, "text-anchor": anchor, ...more }, words);
    const below = ticks(xAxis.range, width < 420 ? 4 : 8).map((v) =>
      text(box.x + share(xAxis, v) * box.width, bottom + 16, "middle", `${v}`.replace("-", "−")));
    const beside = ticks(yAxis.range, yAxis.most).filter((v) => !yAxis.whole || v % 1 === 0).map((v) =>
      text(box.x - 6, box.y + (1 - share(yAxis, v)) * box.height + 4, "end", yAxis.write(v)));
    element.setAttribute("viewBox", `0 0 ${width} ${height}`);
    element.replaceChildren(inner, svg("rect", { ...box, class: "pg-frame" }), ...below, ...beside,
      text(box.x + box.width / 2, height - 4, "middle", xAxis.name),
      text(0, 0, "middle", yAxis.name, { transform: `translate(12 ${middle}) rotate(-90)` }));
    return { box, place, inner };
  }

  /** Draw the surface that is shown: contours, minima, and the handle of the start. */
  function drawGround() {
    const { domain, minima } = SURFACES[page.shown.surface], { lines, picture } = groundOf(page.shown.surface);
    const write = (v) => `${v}`.replace("-", "−");
    ground = axes(plane, { range: domain[0], name: "x" }, { range: domain[1], name: "y", most: 6, write });
    const { box: { width, height }, inner, place } = ground;
    const crosses = minima.map(place).map(([x, y]) => `M${x - 5} ${y - 5}l10 10m0 -10l-10 10`).join("");
    const scaled = { transform: `scale(${width / CELLS} ${height / CELLS})`, class: "pg-contours", d: lines };
    Object.assign(ground, {
      surface: page.shown.surface,
      paths: svg("g", {}),
      handle: svg("g", { class: "pg-handle" }, svg("circle", { r: 20 }), svg("circle", { r: 6 })),
    });
    inner.append(svg("image", { width, height, preserveAspectRatio: "none", href: picture }),
      svg("path", scaled), svg("path", { class: "pg-minima", d: crosses }), ground.paths, ground.handle);
  }

  /** Draw a path as a line through points up to its last step, with dots, the last one larger. */
  function line({ settings: { color, steps }, result: { far }, at }, points, place) {
    const seen = points.slice(0, far < 0 ? at + 1 : Math.min(at + 1, far)).map(place);
    const written = seen.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`);
    const size = Math.max(4.6 - steps / 150, 2.6);
    const dots = { class: "pg-dots", d: `M${written.join("h0M")}h0`, "stroke-width": size };
    const last = svg("circle", { r: 4.5, transform: `translate(${written[written.length - 1]})` });
    return svg("g", { class: `pg-line pg-color-${color}` }, svg("path", { d: `M${written.join("L")}` }),
      svg("path", dots), last);
  }

  /** Draw the values of paths against the step: f - f* on a logarithmic axis, or f where there is no minimum. */
  function drawCurve(paths) {
    const surface = SURFACES[page.shown.surface], low = lowest(surface), { high } = groundOf(page.shown.surface);
    const height = (v) => (low === null ? v : Math.log10(Math.max(v - low, 1e-16)));
    const all = paths.flatMap(({ result }) => result.values).filter(Number.isFinite).map(height);
    const top = Math.ceil(Math.min(Math.max(...all), height(high)) + 1e-9);
    const bottom = Math.max(-16, Math.min(Math.floor(Math.min(...all)), top - 2));
    const y = low === null
      ? { range: [-high, high], name: "f", most: 4, write: short }
      : { range: [bottom, top], name: "f − f⋆", most: 5, write: (k) => `10${raised(k)}`, whole: true };
    const longest = Math.max(...paths.map(({ settings }) => settings.steps));
    const { inner, place } = axes(curve, { range: [0, longest], name: "step t" }, y);
    const points = ({ result }) => result.values.map((v, t) => [t, height(v)]);
    inner.append(...paths.map((path) => line(path, points(path), place)).reverse());
  }

  // ---- text
  /** Say how a path ends. */
  function ending({ left, far, back }) {
    if (far >= 0) return `diverges: farther than 10⁶ from step ${far} on`;
    if (left < 0) return "stays in the frame";
    return `leaves the frame at step ${left}${back ? ", is back at the end" : ""}`;
  }

  /** Say where a path is. */
  function report({ settings: { surface, method, steps }, result: { points, values, ...end }, at }) {
    const { minima } = SURFACES[surface], low = lowest(SURFACES[surface]), [x, y] = points[at];
    const away = short(Math.min(...minima.map(([u, v]) => norm([x - u, y - v]))));
    const value = low === null ? `f = ${short(values[at])} (there is no minimum)`
      : `f − f⋆ = ${short(values[at] - low)}, ${away} from the nearest minimum`;
    const place = end.far >= 0 && at >= end.far ? "" : `: θ = (${short(x)}, ${short(y)}), ${value}`;
    return `${sentence(METHODS[method].name)} after ${at} of ${steps} steps${place}. The path ${ending(end)}.`;
  }

  /** Name the settings of a path: the important ones, and those that are not usual. */
  function described(settings) {
    const usual = defaults(settings.surface, settings.method), { x, y } = page.shown;
    const told = (key) => ["lr", "momentum", "rho", "L"].includes(key) || settings[key] !== usual[key];
    const own = hyperOf(settings.method).filter(told).map((key) => `${CONTROLS[key].sign} = ${settings[key]}`);
    if (settings.clip > 0) own.push(`c = ${settings.clip}`);
    if (settings.noise > 0) own.push(`noise ${settings.noise}, seed ${settings.seed}`);
    if (settings.x !== x || settings.y !== y) own.push(`from (${short(settings.x)}, ${short(settings.y)})`);
    return `${sentence(METHODS[settings.method].name)}: ${own.join(", ")}`;
  }

  /** Make the row of a path in the legend; those that are kept can be removed. */
  function legendRow({ settings, result }, index) {
    const happened = result.left < 0 ? "" : ` – ${ending(result)}`;
    const text = html("span", {}, described(settings) + happened);
    const row = html("li", { className: `pg-color-${settings.color}` }, html("i", {}), text);
    if (index === 0) return row;
    const button = html("button", { type: "button", textContent: "Remove" });
    button.setAttribute("aria-label", `Remove ${described(settings)}`);
    button.addEventListener("click", () => {
      page.kept.splice(index - 1, 1);
      update();
      part("keep").focus();
    });
    row.append(button);
    return row;
  }

  /** Show remarks where everybody sees them, or none. */
  const note = (remarks) => (part("note").textContent = remarks.map((text) => `${sentence(text)}.`).join(" "));

  // ---- update
  /** Compute the paths anew and draw all that depends on them. */
  function update({ write = true } = {}) {
    page.shown.color = 0;
    const paths = [page.shown, ...page.kept].map((settings) => ({
      settings, result: run(settings.surface, settings), at: Math.min(page.at ?? Infinity, settings.steps),
    }));
    if (!ground || ground.surface !== page.shown.surface) drawGround();
    ground.paths.replaceChildren(...paths.map((path) => line(path, path.result.points, ground.place)).reverse());
    ground.handle.setAttribute("transform", `translate(${ground.place([page.shown.x, page.shown.y]).join(" ")})`);
    drawCurve(paths);
    synchronise(paths[0].at);
    if (playing) return;
    part("legend").replaceChildren(...paths.map(legendRow));
    part("readout").textContent = report(paths[0]);
    if (write) writeAddress();
  }

  /** Let the controls show the settings. */
  function synchronise(at) {
    const { shown, kept } = page, player = part("at");
    Object.entries(controls).forEach(([key, { slider, number, scale }]) => {
      const position = Math.min(scale.position(shown[key]), scale.last);
      const notch = Math.min(Math.max(position, 0), scale.last - 1);
      slider.value = position;
      slider.setAttribute("aria-valuetext", shown[key]);
      number.value = shown[key];
      number.step = Number((scale.value(notch + 1) - scale.value(notch)).toPrecision(1));
    });
    player.max = shown.steps;
    player.value = at;
    part("step").textContent = `${at} of ${shown.steps}`;
    part("keep").disabled = kept.length >= MOST;
    part("play").textContent = playing ? "Pause" : calm.matches ? "Show all" : "Play";
  }

  /** Put the settings into the address, a moment after the last change: browsers limit how often. */
  function writeAddress() {
    clearTimeout(writing);
    writing = setTimeout(() => history.replaceState(null, "", `#${format(page)}`), 150);
  }

  // ---- controls
  /** Change settings of the shown path. */
  function change(settings, notes = []) {
    stop();
    note(notes);
    Object.assign(page.shown, settings);
    if (page.at >= page.shown.steps) page.at = null;
    update();
  }

  /** Take a number that was typed, or say what would be right. */
  function typed(key, text) {
    const notes = [], taken = take({ ...page.shown }, [[key, text]], notes);
    change(taken, notes);
  }

  /** Make a slider with its label and a field for the number. */
  function addControl(key, into) {
    const scale = scaleOf(key, page.shown.surface), { label } = CONTROLS[key];
    const slider = html("input", { type: "range", id: `pg-${key}`, min: 0, max: scale.last, step: 1 });
    const number = html("input", { type: "number", id: `pg-${key}-number` });
    number.setAttribute("aria-label", label);
    slider.addEventListener("input", () => change({ [key]: scale.value(slider.valueAsNumber) }));
    number.addEventListener("change", () => typed(key, number.value));
    into.append(html("div", { className: "pg-control" },
      html("label", { htmlFor: slider.id, textContent: label }), number, slider));
    controls[key] = { slider, number, scale };
  }

  /** Make the controls that the surface and the method have, and show the rule of the method. */
  function build() {
    const { surface, method } = page.shown;
    Object.keys(controls).forEach((key) => delete controls[key]);
    ["hyper", "gradient", "start"].forEach((name) => part(name).replaceChildren());
    hyperOf(method).forEach((key) => addControl(key, part("hyper")));
    ["noise", "seed", "clip"].forEach((key) => addControl(key, part("gradient")));
    ["x", "y", "steps"].forEach((key) => addControl(key, part("start")));
    part("surface").value = surface;
    part("method").value = method;
    const { formula, smoothness } = SURFACES[surface];
    part("formula").textContent = `f = ${formula}`;
    part("curvature").textContent = `largest curvature here: L = ${smoothness}, 2/L = ${short(2 / smoothness)}`;
    root.querySelectorAll(".pg-rule").forEach((rule) => {
      rule.hidden = !rule.classList.contains(`pg-${method.replace(/_/g, "-")}`);
    });
  }

  /** Choose surface and method: what still has a meaning is kept, the rest starts with its default. */
  function choosePair(surface, method) {
    stop();
    const before = page.shown, fresh = defaults(surface, method);
    const was = METHODS[before.method], is = METHODS[method];
    const moved = surface !== before.surface;
    const usual = was.step !== is.step || (was.factor ?? 1) !== (is.factor ?? 1) ? ["lr"] : [];
    const foreign = was.clips || is.clips ? ["clip"] : [];
    const carried = moved ? [...Object.keys(is.hyper).filter((key) => key !== "L"), "noise", "seed"]
      : [...COMMON, "lr"].filter((key) => ![...usual, ...foreign].includes(key));
    carried.filter((key) => key in before && key in fresh).forEach((key) => (fresh[key] = before[key]));
    note(moved && page.kept.length ? ["the kept paths belonged to the other surface and are removed"] : []);
    page = { shown: fresh, kept: moved ? [] : page.kept, at: null };
    build();
    update();
  }

  // ---- player and pointer
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  /** Stop the animation. */
  function stop() {
    cancelAnimationFrame(playing);
    playing = 0;
  }

  /** Let the paths grow step by step from where they are shown, or stop that; without motion show all. */
  function play() {
    if (playing || calm.matches) {
      if (!playing) page.at = null;
      stop();
      return update();
    }
    const { steps } = page.shown, first = page.at ?? 0, began = performance.now();
    const pace = Math.min(80, 6000 / steps); // milliseconds a step
    const grow = (now) => {
      const at = first + Math.max(0, Math.floor((now - began) / pace));
      page.at = at < steps ? at : null;
      playing = page.at === null ? 0 : requestAnimationFrame(grow);
      update();
    };
    page.at = first;
    playing = requestAnimationFrame(grow);
    update();
  }

  /** Put the start at a point of the frame, on the grid of its sliders; a coordinate that is null stays. */
  function startAt(point) {
    const placed = point.map((v, axis) => {
      const key = "xy"[axis], { scale } = controls[key];
      return v === null ? page.shown[key] : scale.value(Math.min(Math.max(scale.position(v), 0), scale.last));
    });
    change({ x: placed[0], y: placed[1] });
  }

  /** Put the start where the pointer is. */
  function startAtPointer(event) {
    const { left, top } = plane.getBoundingClientRect(), { x, y, width, height } = ground.box;
    const shares = [(event.clientX - left - x) / width, 1 - (event.clientY - top - y) / height];
    startAt(each((share, [low, high]) => low + share * (high - low), shares, SURFACES[page.shown.surface].domain));
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };

  /** Move the start by a hundredth of the frame, with Shift by a tenth. */
  function startByKey(event) {
    if (!ARROWS[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const { surface, x, y } = page.shown, share = event.shiftKey ? 0.1 : 0.01;
    const sizes = SURFACES[surface].domain.map(([low, high]) => share * (high - low));
    startAt(each((v, arrow, size) => (arrow ? v + arrow * size : null), [x, y], ARROWS[event.key], sizes));
  }

  /** Listen to the plane: a click or a tap, dragging with the mouse, dragging the start with a finger. */
  function listenToPlane() {
    plane.addEventListener("keydown", startByKey);
    plane.addEventListener("pointerdown", (event) => {
      const held = event.pointerType === "mouse" || event.target.closest(".pg-handle");
      if (!held || event.button !== 0) return; // a finger elsewhere scrolls the page
      plane.setPointerCapture(event.pointerId);
      startAtPointer(event);
    });
    plane.addEventListener("pointermove", (event) => {
      if (plane.hasPointerCapture(event.pointerId)) startAtPointer(event);
    });
    plane.addEventListener("click", startAtPointer);
  }

  // ---- start
  /** Show what the address says, if it says anything. */
  function open() {
    if (location.hash && !location.hash.includes("=")) return false; // a heading of the page
    stop();
    clearTimeout(writing);
    page = parse(location.hash);
    page.kept.forEach((settings, index) => (settings.color = index + 1));
    note(page.notes);
    build();
    update({ write: false });
    return location.hash !== "";
  }

  /** Keep the shown path in the first colour that is free. */
  function keep() {
    const used = page.kept.map(({ color }) => color);
    const color = [1, 2, 3, 4, 5, 6].find((one) => !used.includes(one));
    page.kept.push({ ...page.shown, color });
    update();
  }

  /** Copy the address of this state. */
  async function copy() {
    const link = `${location.href.split("#")[0]}#${format(page)}`;
    try {
      await navigator.clipboard.writeText(link);
      note(["the link is copied"]);
    } catch {
      history.replaceState(null, "", link);
      note(["this browser does not let the page copy: the link stands in the address bar"]);
    }
  }

  /** Begin. */
  function begin() {
    const options = (known) => Object.entries(known).map(([key, { name }]) => new Option(sentence(name), key));
    const chosen = () => choosePair(part("surface").value, part("method").value);
    part("surface").append(...options(SURFACES));
    part("method").append(...options(METHODS));
    part("surface").addEventListener("change", chosen);
    part("method").addEventListener("change", chosen);
    part("at").addEventListener("input", ({ target }) => {
      stop();
      page.at = target.valueAsNumber < page.shown.steps ? target.valueAsNumber : null;
      update();
    });
    Object.entries({ play, keep, copy }).forEach(([name, act]) => part(name).addEventListener("click", act));
    part("reset").addEventListener("click", () => {
      history.pushState(null, "", "#");
      open();
    });
    addEventListener("DOMContentLoaded", () =>
      document.querySelectorAll("a[data-state]").forEach((link) => (link.href = `#${link.dataset.state}`)));
    listenToPlane();
    part("body").hidden = false;
    if (!open()) { build(); update({ write: false }); }
    new ResizeObserver(() => { ground = null; update({ write: false }); }).observe(plane);
    addEventListener("hashchange", () => open() && root.scrollIntoView());
  }

  begin();
}
