package meshdir

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// defaultCostExpire is how long a request's reservation is held if nothing is said.
const defaultCostExpire = time.Minute

// costHeaderForm is narrower than what a header may be called: the name stands in a
// format string of Envoy.
var costHeaderForm = regexp.MustCompile(`^[0-9A-Za-z_-]+$`)

// quotaCost says what a request takes from a limit, known only when it is over.
type quotaCost struct {
	From    string    `json:"from"`
	Reserve uint32    `json:"reserve"`
	Expire  *duration `json:"expire"`
}

// checkCost checks the cost of a limit; at is the limit's place.
func (c *checker) checkCost(at string, limit *quotaLimit) {
	cost := limit.Cost
	if cost == nil {
		return
	}
	at += ".cost"
	if _, _, problem := costSource(cost.From); problem != "" {
		c.errorf(at+".from", "%s", problem)
	}
	if limit.Requests != nil && limit.Plan == nil && cost.Reserve > *limit.Requests {
		c.errorf(at+".reserve", "%d is more than the limit's %d requests: no request would pass", cost.Reserve, *limit.Requests)
	}
	switch {
	case cost.Expire == nil:
	case cost.Reserve == 0:
		c.errorf(at+".expire", "nothing expires without reserve: add it, or remove this")
	case cost.Expire.value() < configpb.MinHold || cost.Expire.value() > configpb.MaxHold:
		c.errorf(at+".expire", "%s is not between %s and %s", cost.Expire.value(), configpb.MinHold, configpb.MaxHold)
	}
}

// costSource reads where a cost comes from; the third result says what is wrong.
func costSource(text string) (from, header, problem string) {
	switch text {
	case model.CostRequestBytes, model.CostResponseBytes:
		return text, "", ""
	case "":
		return "", "", "it is missing: write response.headers[name], response.bytes or request.bytes"
	}
	name, isHeader := strings.CutPrefix(text, model.CostResponseHeader+"[")
	name, closed := strings.CutSuffix(name, "]")
	if isHeader && closed && costHeaderForm.MatchString(name) {
		return model.CostResponseHeader, strings.ToLower(name), ""
	}
	return "", "", strconv.Quote(shorten(text)) + " is not response.headers[name], response.bytes or request.bytes"
}

// value gives the cost of a checked limit.
func (q *quotaCost) value() *model.QuotaCost {
	if q == nil {
		return nil
	}
	from, header, _ := costSource(q.From) // checked before
	out := &model.QuotaCost{From: from, Header: header, Reserve: q.Reserve}
	if q.Reserve > 0 {
		out.Expire = defaultCostExpire
		if q.Expire != nil {
			out.Expire = q.Expire.value()
		}
	}
	return out
}
