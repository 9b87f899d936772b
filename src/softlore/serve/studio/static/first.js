// Sets the chosen theme before anything is drawn, so that no page flashes in the other one.
try {
  const theme = localStorage.getItem("softlore.theme");
  if (theme) document.documentElement.dataset.theme = JSON.parse(theme);
} catch {
  // Without storage the system's theme stands.
}
