package regions

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestExamplesOfThePage plays the lines of docs/quotas.md about two regions.
func TestExamplesOfThePage(t *testing.T) {
	page, err := os.ReadFile("../../docs/quotas.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "\n```regions\n")
	block, _, found := strings.Cut(block, "\n```")
	if !found {
		t.Fatal("the page has no examples of regions")
	}
	for line := range strings.Lines(block) {
		synctest.Test(t, func(t *testing.T) { play(t, line) })
	}
}

// play plays one line: a limit, how much is lent, and what comes when and where.
func play(t *testing.T, line string) {
	head, events, _ := strings.Cut(strings.TrimSpace(line), ": ")
	var requests uint32
	var every string
	var percent int
	if _, err := fmt.Sscanf(head, "%d in %s lend %d", &requests, &every, &percent); err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	w := newWorld(t, sliding(t, requests, length(t, every)), twoShares)
	w.start("east", percent, 0)
	w.start("west", percent, time.Hour)
	sleep(2 * time.Second) // they have met
	begin := time.Now()
	for _, event := range strings.Split(events, ", ") {
		words := strings.Fields(event)
		sleep(time.Until(begin.Add(length(t, words[0]))))
		switch words[1] {
		case "cut", "mend":
			w.at("west").cut.Store(words[1] == "cut")
		default:
			if passed := w.ask(words[1]); passed != (words[2] == "pass") {
				t.Errorf("%s: %s: passed: %v", line, event, passed)
			}
		}
	}
	w.stop()
}

func length(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
