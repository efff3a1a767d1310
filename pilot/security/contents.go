package security

import (
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// contents are what the policies of one action come to: the content of filters by
// name, and who is named.
type contents struct {
	filters          map[string]*anypb.Any
	refs, shadowRefs []model.Ref
}

func contentsOf(set ruleSet) contents {
	return contents{filters: map[string]*anypb.Any{}, refs: set.refs, shadowRefs: set.shadowRefs}
}

func (c contents) enable(filter string, rbac *rbachttpv3.RBAC) {
	c.filters[filter] = envoy.Any(perRoute(rbac))
}
