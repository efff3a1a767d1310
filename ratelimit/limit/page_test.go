package limit

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestExamplesOfThePage plays the sequences of docs/quotas.md.
func TestExamplesOfThePage(t *testing.T) {
	page, err := os.ReadFile("../../docs/quotas.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), "```quota\n")
	block, _, _ := strings.Cut(after, "\n```")
	lines := strings.Split(block, "\n")
	if len(lines) < 5 {
		t.Fatalf("the page has %d sequences", len(lines))
	}
	for _, line := range lines {
		name, steps, _ := strings.Cut(line, ": ")
		t.Run(name, func(t *testing.T) { sequence(t, name, strings.Split(steps, ", ")) })
	}
}

func sequence(t *testing.T, name string, steps []string) {
	words := strings.Fields(name)
	var requests, burst uint32
	if _, err := fmt.Sscan(words[1], &requests); err != nil {
		t.Fatal(err)
	}
	l, err := Limit{}, error(nil)
	for _, a := range Algorithms() {
		if a.String() == words[0] {
			l, err = New(a, requests, duration(t, words[3]))
		}
	}
	if len(words) == 6 {
		if _, err := fmt.Sscan(words[5], &burst); err != nil {
			t.Fatal(err)
		}
		l, err = NewGCRA(requests, l.Window(), burst)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCounter(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range steps {
		words := strings.Fields(step)
		u, now := Use{Limit: l, Hits: 1}, epoch.Add(duration(t, words[0]))
		if len(words) > 2 && words[1] != "refused" {
			u.Hold = words[2]
		}
		if words[1] == "end" {
			u.Op, u.Hits = Settle, 0
			c.Apply(&u, now)
			continue
		}
		out := c.Check(&u, now, 0)
		got := "pass"
		if out.Over {
			got = "refused"
		}
		if got == "pass" || l.CountsRefused() {
			c.Take(&u, now, 1)
		}
		if got != words[1] || out.Over && out.RetryAfter != duration(t, words[2]) {
			t.Errorf("%s: %+v", step, out)
		}
	}
}

func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
