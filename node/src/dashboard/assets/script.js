// Takes over the sections that changed. The page is complete without it.
"use strict";

(() => {
  const sign = document.getElementById("live");
  if (!sign || !window.EventSource) return;
  const address = sign.dataset.events;
  const again_ms = 5000;
  const waiting = new Map();

  const say = (kind, words) => {
    if (sign.dataset.state === kind) return;
    sign.dataset.state = kind;
    sign.textContent = words;
  };

  const beingSelected = (section) => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && selection.intersectsNode
      ? selection.rangeCount > 0 && selection.getRangeAt(0).intersectsNode(section)
      : Boolean(selection && !selection.isCollapsed && selection.containsNode(section, true));
  };

  // The server escapes every name; what comes here is its own markup.
  const show = (id, markup) => {
    const section = document.getElementById(id);
    if (!section) return;
    if (beingSelected(section)) {
      waiting.set(id, markup);
      return;
    }
    waiting.delete(id);
    const focused = section.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    section.innerHTML = markup;
    if (focused) {
      const same = Array.from(section.querySelectorAll("a")).find((a) => a.getAttribute("href") === focused);
      if (same) same.focus({ preventScroll: true });
    }
  };

  document.addEventListener("selectionchange", () => {
    for (const [id, markup] of Array.from(waiting)) show(id, markup);
  });

  let source = null;
  let retry = 0;

  const open = () => {
    window.clearTimeout(retry);
    source = new EventSource(address);
    source.onopen = () => say("live", "live");
    source.onmessage = (event) => {
      say("live", "live");
      for (const [id, markup] of Object.entries(JSON.parse(event.data))) show(id, markup);
    };
    source.onerror = () => {
      say("lost", "not live: trying again");
      // After a refusal the browser gives up for good; a node that restarts comes back.
      if (source.readyState === EventSource.CLOSED) retry = window.setTimeout(open, again_ms);
    };
  };

  const close = () => {
    window.clearTimeout(retry);
    if (source) source.close();
    source = null;
  };

  // A page that nobody sees asks for nothing.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      close();
    } else if (!source) {
      open();
    }
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", () => { if (!source && !document.hidden) open(); });
  if (!document.hidden) open();
})();
