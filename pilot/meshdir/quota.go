package meshdir

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// quotaSpec is the specification of a QuotaPolicy.
type quotaSpec struct {
	Selector        *labelSelector `json:"selector"`
	Match           []quotaMatch   `json:"match"`
	Upper           string         `json:"upper"`
	Lower           string         `json:"lower"`
	Limits          []quotaLimit   `json:"limits"`
	Mode            string         `json:"mode"`
	WhenUnavailable string         `json:"whenUnavailable"`
}

type quotaLimit struct {
	Name       string     `json:"name"`
	Per        []string   `json:"per"`
	Requests   *uint32    `json:"requests"`
	Every      *duration  `json:"every"`
	Algorithm  string     `json:"algorithm"`
	Burst      *uint32    `json:"burst"`
	Concurrent *uint32    `json:"concurrent"`
	Timeout    *duration  `json:"timeout"`
	Mode       string     `json:"mode"`
	Cost       *quotaCost `json:"cost"`
	Plan       *quotaPlan `json:"plan"`
	Fair       *quotaFair `json:"fair"`
}

func checkQuotaPolicy(c *checker) {
	s := c.object.spec.(*quotaSpec)
	local := s.WhenUnavailable == whenLocal
	c.policyMode(s.Selector, s.Mode, s.WhenUnavailable, whenLocal)
	c.checkLayers(s)
	c.checkTemplates(s)
	if len(s.Limits) == 0 && s.Upper != model.QuotaExempt {
		c.errorf("spec.limits", "a QuotaPolicy needs at least one limit")
	}
	if n := len(s.Limits); n > configpb.MaxQuotaLimits {
		c.errorf("spec.limits", "%d limits are too many: a QuotaPolicy has at most %d; write several", n, configpb.MaxQuotaLimits)
	}
	for i, limit := range s.Limits {
		at := index("spec.limits", i)
		c.checkCount(at, &limit)
		c.checkCost(at, &limit)
		if local {
			c.checkLocal(at, &limit)
		}
		c.checkPlan(at, &limit)
		c.checkFair(at, &limit, local)
		for j, text := range limit.Per {
			if _, problem := parseDimension(text); problem != "" {
				c.errorf(index(at+".per", j), "%s", problem)
			} else if slices.Contains(limit.Per[:j], text) {
				c.errorf(index(at+".per", j), "%q is given twice", text)
			}
		}
	}
}

// parseDimension reads one entry of per; the second result says what is wrong.
func parseDimension(text string) (model.Dimension, string) {
	plain := []string{"source.principal", "source.namespace", "source.ip", "request.method", "request.path", "destination.service"}
	if slices.Contains(plain, text) {
		return model.Dimension{Text: text, Kind: text}, ""
	}
	name, rest, bracket := strings.Cut(text, "[")
	switch {
	case text == "":
		return model.Dimension{}, "an empty entry: remove it"
	case strings.HasPrefix(text, templateDimension):
		return parseTemplate(text)
	case name == "request.headers" || name == "request.auth.claims":
		args := strings.Split(strings.TrimSuffix(rest, "]"), "][")
		nested := name == "request.auth.claims"
		if !bracket || !strings.HasSuffix(rest, "]") || slices.Contains(args, "") || len(args) > 1 && !nested ||
			strings.ContainsAny(strings.Join(args, ""), "[]") || !nested && !headerNameForm.MatchString(args[0]) {
			return model.Dimension{}, fmt.Sprintf("%q needs a name in brackets: %s[name]", shorten(text), name)
		}
		return model.Dimension{Text: text, Kind: name, Arg: strings.Join(args, "][")}, ""
	}
	for _, prefix := range []string{"source.", "request.", "destination.", "connection."} {
		if strings.HasPrefix(text, prefix) {
			known := append(plain, "request.headers[name]", "request.auth.claims[name]", "request.path[/users/{id}]")
			return model.Dimension{}, "unknown dimension " + strconv.Quote(shorten(text)) + didYouMean(text, known)
		}
	}
	return model.Dimension{Text: text, Kind: "constant", Arg: text}, ""
}

func quotaPolicyOf(o *object) *model.QuotaPolicy {
	s := o.spec.(*quotaSpec)
	p := &model.QuotaPolicy{Meta: o.meta, Selector: s.Selector.labels(), Match: s.matches(), Upper: way(s.Upper), Lower: way(s.Lower), FailClosed: s.WhenUnavailable == "Deny", FailLocal: s.WhenUnavailable == whenLocal, Observe: s.Mode == "observe"}
	for _, limit := range s.Limits {
		l := countOf(&limit)
		l.Name = limit.Name
		for _, text := range limit.Per {
			d, _ := parseDimension(text) // checked before
			l.Per = append(l.Per, d)
		}
		if l.Fair != nil {
			d, _ := parseDimension(l.Fair.By) // checked before
			l.Per = append(l.Per, d)
		}
		p.Limits = append(p.Limits, l)
	}
	p.Fingerprint = p.ContentHash()
	return p
}
