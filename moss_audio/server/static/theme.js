/** Runs before the first paint, so that a chosen theme does not flash; without a choice the system's holds. */
const chosenTheme = localStorage.getItem("moss-audio-theme");
if (chosenTheme) document.documentElement.dataset.theme = chosenTheme;
