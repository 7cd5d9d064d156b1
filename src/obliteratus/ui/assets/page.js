// The theme: what the visitor chose last, else what the system says.
(() => {
  const KEY = "obliteratus-theme";
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (localStorage.getItem(KEY) || (system.matches ? "dark" : "light")) === "dark";
  // A page in a frame follows the system by a media query: it is made to follow this one.
  const paint = (frame) => {
    const sheets = frame.contentDocument ? [...frame.contentDocument.styleSheets] : [];
    for (const rule of sheets.flatMap((sheet) => [...sheet.cssRules])) {
      if (rule instanceof frame.contentWindow.CSSMediaRule && (rule.themed || rule.media.mediaText.includes("scheme"))) {
        rule.themed = true;
        rule.media.mediaText = isDark() ? "all" : "not all";
      }
    }
    if (!frame.contentDocument) frame.contentWindow.postMessage({ dark: isDark() }, "*");
  };
  const show = () => {
    document.querySelectorAll("iframe.frame").forEach(paint);
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
  const watch = () => {
    show();
    new MutationObserver(show).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  };
  if (document.body) watch();
  else document.addEventListener("DOMContentLoaded", watch);
  document.addEventListener("load", (event) => {
    const frame = event.target;
    if (!(frame instanceof HTMLIFrameElement)) return;
    paint(frame);
    if (!frame.contentDocument) return;
    // A report has no scripts and says nothing of its height: its frame is made as high as it is.
    const root = frame.contentDocument.documentElement;
    const fit = () => { frame.style.height = `${root.scrollHeight + 8}px`; };
    fit();
    new ResizeObserver(fit).observe(root);
  }, true);
})();
