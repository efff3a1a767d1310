package pilot

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// TestWeightsAreTold: ratelimit is told who has which weight, and in which table the
// others have theirs.
func TestWeightsAreTold(t *testing.T) {
	m := &model.Mesh{QuotaPolicies: []*model.QuotaPolicy{{Limits: []model.QuotaLimit{{
		Per:  []model.Dimension{{Text: "source.namespace", Kind: "source.namespace"}},
		Fair: &model.QuotaFair{By: "source.namespace", Weights: map[string]uint32{"a": 3}, Plan: &model.QuotaPlan{Table: "t", By: "source.namespace", Numbers: "weight"}},
	}}}}}
	want := &configpb.QuotaFair{Weights: map[string]uint32{"a": 3}, Plan: &configpb.QuotaPlan{Table: "t", By: "source.namespace", Numbers: "weight"}}
	p, ok := quotaPolicies(m)[0].message.(*configpb.QuotaPolicy)
	if got := p.GetLimits()[0].GetFair(); !ok || !proto.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
}
