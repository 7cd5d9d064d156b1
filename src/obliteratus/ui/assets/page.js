// The theme: what the visitor chose last, else what the system says.
(() => {
  const KEY = "obliteratus-theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (localStorage.getItem(KEY) || (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    document.documentElement.lang = "en";
    document.documentElement.style.colorScheme = isDark() ? "dark" : "light";
    if (document.body && document.body.classList.contains("dark") !== isDark()) {
      document.body.classList.toggle("dark", isDark());
    }
  };
  system.addEventListener("change", show);
  document.addEventListener("click", (event) => {
    if (event.target.closest && event.target.closest("#theme-toggle")) {
      localStorage.setItem(KEY, isDark() ? "light" : "dark");
      show();
    }
  });
  // gradio sets its class on the body when it starts, and again when it has loaded.
  new MutationObserver(show).observe(document.documentElement, {
    attributes: true, attributeFilter: ["class"], childList: true, subtree: true,
  });
  show();
})();
// A report has no scripts and says nothing of its height: its frame is made as high as it is.
document.addEventListener("load", (event) => {
  const frame = event.target;
  if (!(frame instanceof HTMLIFrameElement) || !frame.contentDocument) return;
  const fit = () => { frame.style.height = `${frame.contentDocument.documentElement.scrollHeight + 8}px`; };
  fit();
  new ResizeObserver(fit).observe(frame.contentDocument.documentElement);
}, true);
