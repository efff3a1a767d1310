package ratelimit

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// block gives the lines of the first block of a language on a page.
func block(t *testing.T, page, language string) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "```"+language+"\n")
	if !found {
		t.Fatalf("%s has no example in %s", page, language)
	}
	after, _, _ = strings.Cut(after, "\n```")
	return strings.Split(after, "\n")
}

func pageDuration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func pageNumber(t *testing.T, text string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// TestCostsOfThePage plays the sequences of costs in docs/quotas.md.
func TestCostsOfThePage(t *testing.T) {
	for _, line := range block(t, "quotas.md", "cost") {
		head, steps, _ := strings.Cut(line, ": ")
		words := strings.Fields(head)
		l := &configpb.Limit{Per: []string{"source.principal"}, Requests: pageNumber(t, words[0]), Every: durationpb.New(pageDuration(t, words[2])), Cost: &configpb.Cost{}}
		if len(words) == 7 {
			l.Cost = &configpb.Cost{Reserve: pageNumber(t, words[4]), Expire: durationpb.New(pageDuration(t, words[6]))}
		}
		s, c, _ := newServer(t)
		withQuotas(t, s, policy("q", false, l))
		noon := c.now
		for _, step := range strings.Split(steps, ", ") {
			words := strings.Fields(step)
			c.now = noon.Add(pageDuration(t, words[0]))
			d := begin(words[2])
			if words[1] == "end" {
				d = over(words[2], uint64(pageNumber(t, words[3])))
			}
			resp := ask(t, s, "writ", d)
			got := fmt.Sprint(resp.GetStatuses()[0].GetLimitRemaining())
			if resp.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT {
				got = "refused"
			}
			if want := words[len(words)-1]; got != want {
				t.Errorf("%s: %q: %s, want %s", head, step, got, want)
			}
		}
	}
}

// TestHeadersOfThePage exhausts the limits in docs/quotas.md and reads what refuses.
func TestHeadersOfThePage(t *testing.T) {
	for _, line := range block(t, "quotas.md", "answers") {
		head, want, _ := strings.Cut(line, ": ")
		var limits []*configpb.Limit
		var descs []*commonv3.RateLimitDescriptor
		for i, text := range strings.Split(head, ", ") {
			words := strings.Fields(text)
			limits = append(limits, per(pageNumber(t, words[0]), pageDuration(t, words[2])))
			descs = append(descs, quotaDesc("q", i, "a"))
		}
		s, _, _ := newServer(t)
		withQuotas(t, s, policy("q", false, limits...))
		var headers []string
		for len(headers) < 5 {
			headers = nil
			for _, h := range ask(t, s, "writ", descs...).GetResponseHeadersToAdd() {
				headers = append(headers, h.GetKey()+": "+h.GetValue())
			}
		}
		if got := strings.Join(headers, "; "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", head, got, want)
		}
	}
}

// TestDescriptorsOfThePage asks what docs/from-envoyproxy-ratelimit.md configures.
func TestDescriptorsOfThePage(t *testing.T) {
	s, _, _ := newServer(t)
	withDescriptors(t, s, strings.Join(block(t, "from-envoyproxy-ratelimit.md", "descriptors"), "\n"))
	wantAnswer(t, "a path", ask(t, s, "shop", desc("path", "/cart/1"), desc("path", "/cart/2")), "OK | OK 599 of 600/minute 1m0s | OK 598 of 600/minute 1m0s")
	wantAnswer(t, "a user", ask(t, s, "shop", desc("user", "ann")), "OK | OK 99 of 100/hour 1h0m0s")
	wantAnswer(t, "a golden user", ask(t, s, "shop", desc("user", "ann"), desc("tier", "gold")), "OK | OK 0 | OK 4294967295")
}
