// The theme: what the visitor chose last, else what the system says.
(() => {
  const KEY = "obliteratus-theme";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const wanted = () => localStorage.getItem(KEY) || (dark.matches ? "dark" : "light");
  const show = () => {
    const isDark = wanted() === "dark";
    document.documentElement.style.colorScheme = isDark ? "dark" : "light";
    if (document.body) document.body.classList.toggle("dark", isDark);
    const button = document.getElementById("theme-toggle");
    if (button) {
      button.setAttribute("aria-pressed", String(isDark));
      button.textContent = isDark ? "Light" : "Dark";
      button.setAttribute("aria-label", isDark ? "Switch to the light theme" : "Switch to the dark theme");
    }
  };
  dark.addEventListener("change", show);
  document.addEventListener("click", (event) => {
    if (event.target.closest && event.target.closest("#theme-toggle")) {
      localStorage.setItem(KEY, wanted() === "dark" ? "light" : "dark");
      show();
    }
  });
  document.addEventListener("DOMContentLoaded", () => {
    document.documentElement.lang = "en";
    show();
    new MutationObserver(show).observe(document.body, { childList: true });
    const waiting = new MutationObserver(() => {
      if (document.getElementById("theme-toggle")) { show(); waiting.disconnect(); }
    });
    waiting.observe(document.body, { childList: true, subtree: true });
  });
})();
// A report has no scripts and says nothing of its height: its frame is made as high as it is.
document.addEventListener("load", (event) => {
  const frame = event.target;
  if (!(frame instanceof HTMLIFrameElement) || !frame.contentDocument) return;
  const fit = () => { frame.style.height = `${frame.contentDocument.documentElement.scrollHeight + 8}px`; };
  fit();
  new ResizeObserver(fit).observe(frame.contentDocument.documentElement);
}, true);
