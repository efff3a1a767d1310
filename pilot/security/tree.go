package security

import (
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
)

// tree gives the same decisions as rules in the form of a matcher tree, or nil
// if the list is to stay.
func tree(_ *rbacv3.RBAC, _ int) *xdsmatcherv3.Matcher { return nil }
