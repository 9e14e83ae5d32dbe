// What a page of the console does beyond reading: keys, "choose all", and saying when it could not be refreshed.
// Everything works without this file.
"use strict";

document.documentElement.classList.add("scripted");

// --- keys: / to the search, j and k through a list, x to choose, Enter is the link's own ---

const typing = (element) => element.closest("input, select, textarea, [contenteditable]") !== null;

const step = (by) => {
  const links = [...document.querySelectorAll("[data-rows] tbody a.go")];
  if (links.length === 0) return;
  const here = document.activeElement.closest("tr");
  const at = links.findIndex((link) => here !== null && here.contains(link));
  const next = at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + by, 0), links.length - 1);
  links[next].focus();
};

const choose = () => {
  const box = document.activeElement.closest("tr")?.querySelector("input[name=id]");
  if (box) box.checked = !box.checked;
};

const search = () => document.querySelector("[data-search]")?.focus();

const KEYS = { "/": search, j: () => step(1), k: () => step(-1), x: choose };

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && typing(event.target)) event.target.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// --- choose all ---

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-all]")) return;
  for (const box of event.target.form.querySelectorAll("input[name=id]")) box.checked = event.target.checked;
});

// --- refreshing ---

const stale = (is) => document.querySelector(".stale")?.toggleAttribute("hidden", !is);

// A page that nobody looks at asks for nothing; what is empty need not be said.
document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden && event.detail.ctx.sourceEvent?.type === "every") event.preventDefault();
});
document.addEventListener("htmx:config:request", (event) => {
  const body = event.detail.ctx.request.body;
  for (const [name, value] of [...body]) if (value === "") body.delete(name);
});
document.addEventListener("htmx:after:swap", () => stale(false));
document.addEventListener("htmx:error", () => stale(true));
document.addEventListener("htmx:response:error", () => stale(true));
