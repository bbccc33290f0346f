// Tokens of one rollout, coloured by d. What a model wrote is hostile: every text goes through textContent, nothing is ever parsed as HTML.
const shown = new WeakMap();

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function number(value, unit) {
  if (value === null || value === undefined) return "–";
  return `${Number(value.toPrecision(4))}${unit ? " " + unit : ""}`.replace("-", "−");
}

function legend(data) {
  const box = make("div", "legend");
  const scale = make("div", "scale");
  scale.append(make("span", "", data.scale));
  for (const [className, label] of data.levels) scale.append(make("span", `swatch ${className}`, label));
  box.append(scale);
  const kinds = make("div", "scale");
  for (const [className, label] of data.kinds) kinds.append(make("span", `swatch ${className}`, label));
  box.append(kinds);
  return box;
}

function details(data, i) {
  const rows = [["token", data.place[i]]];
  if (data.ids[i]) rows.push(["id", data.ids[i]]);
  rows.push(["engine, log p", number(data.engine[i], "nats")], ["trainer, log q", number(data.trainer[i], "nats")], ["d = log q − log p", number(data.d[i], "nats")],
    ["entropy", number(data.entropy[i], "nats")], ["rank", data.rank[i] || "–"], ["weight version", data.version[i] || "unknown"]);
  if (data.why[i]) rows.push(["", data.why[i]]);
  return rows;
}

function showTip(tip, flow, data, element) {
  const i = Number(element.dataset.i);
  tip.replaceChildren(make("b", "", data.text[i] || `token ${data.place[i]}`));
  for (const [label, value] of details(data, i)) {
    const row = make("div");
    row.append(make("span", "", label), make("span", "", value));
    tip.append(row);
  }
  tip.hidden = false;
  const box = flow.parentElement.getBoundingClientRect(), at = element.getClientRects()[0] || element.getBoundingClientRect();
  const left = Math.max(0, Math.min(at.left - box.left, box.width - tip.offsetWidth));
  const below = at.bottom - box.top + 6, above = at.top - box.top - tip.offsetHeight - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${at.bottom + tip.offsetHeight + 10 > window.innerHeight && above > 0 ? above : below}px`;
}

function tokens(flow, data) {
  const all = [];
  if (data.promptNote) flow.append(make("span", "note", data.promptNote));
  for (const text of data.prompt) flow.append(make("span", "t prompt", text));
  flow.append(make("span", "mark", data.prompt.length ? "completion" : "begin"));
  if (data.before) flow.append(make("span", "note", data.before));
  data.text.forEach((text, i) => {
    if (data.mark[i]) flow.append(make("span", "mark version", data.mark[i]));
    const span = make("span", `t ${data.classes[i]}`, text);
    span.dataset.i = i;
    flow.append(span);
    if (text.endsWith("⏎")) flow.append("\n");
    all.push(span);
  });
  if (data.after) flow.append(make("span", "note", data.after));
  return all;
}

function keyboard(flow, all, choose) {
  flow.addEventListener("keydown", (event) => {
    const now = Math.max(0, all.findIndex((one) => one.classList.contains("now"))), fresh = !flow.querySelector(".now");
    const odd = (one) => /[mp][34]/.test(one.className);
    const steps = {
      ArrowRight: () => (fresh ? 0 : now + 1), ArrowLeft: () => now - 1, Home: () => 0, End: () => all.length - 1,
      ArrowDown: () => all.findIndex((one, i) => (i > now || fresh) && odd(one)), ArrowUp: () => all.findLastIndex((one, i) => i < now && odd(one)),
    };
    if (!steps[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const next = steps[event.key]();
    if (next >= 0 && next < all.length) choose(all[next], true);
  });
}

function toCompletion(flow) {  // a long prompt must not hide what was generated: the box begins with the prompt's end
  const mark = flow.querySelector(".mark");
  const below = mark ? mark.getBoundingClientRect().top - flow.getBoundingClientRect().top : 0;
  if (below > flow.clientHeight / 2) flow.scrollTop = below - flow.clientHeight / 4;
}

export default function (component) {
  const { parentElement, data } = component;
  if (shown.get(parentElement) === data.signature) return;  // the same rollout: scroll, focus and choice stay
  shown.set(parentElement, data.signature);
  const box = make("div", "box"), holder = make("div"), flow = make("div", `flow ${data.look}`), tip = make("div", "tip");
  holder.style.position = "relative";
  flow.tabIndex = 0;
  flow.setAttribute("role", "group");
  flow.setAttribute("aria-label", data.label);
  tip.hidden = true;
  tip.setAttribute("role", "status");
  const all = tokens(flow, data);
  const choose = (element, scroll) => {
    flow.querySelector(".now")?.classList.remove("now");
    element.classList.add("now");
    if (scroll) element.scrollIntoView({ block: "nearest" });
    showTip(tip, flow, data, element);
  };
  const clear = () => { flow.querySelector(".now")?.classList.remove("now"); tip.hidden = true; };
  for (const kind of ["mouseover", "click"]) flow.addEventListener(kind, (event) => {
    const element = event.target.closest("[data-i]");
    if (element) choose(element, false);
  });
  flow.addEventListener("mouseleave", clear);
  flow.addEventListener("blur", clear);
  keyboard(flow, all, choose);
  holder.append(flow, tip);
  box.append(legend(data), holder, make("div", "keys", data.help));
  parentElement.querySelector(".box")?.remove();
  parentElement.append(box);
  requestAnimationFrame(() => toCompletion(flow));
}
