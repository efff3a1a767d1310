package relay

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// metadataNode is the key of the node's metadata in which the agent puts the name
// of the node on which it attested the proxy.
const metadataNode = "WRIT_NODE"

// identify returns node with the attested id; a nil node is made up. corrected
// tells that the caller claimed another id.
func identify(node *corev3.Node, proxyID, nodeName string) (out *corev3.Node, corrected bool) {
	if node == nil {
		node = new(corev3.Node)
	} else {
		corrected = node.GetId() != proxyID
	}
	node.Id = proxyID
	if node.Metadata == nil {
		node.Metadata = new(structpb.Struct)
	}
	if node.Metadata.Fields == nil {
		node.Metadata.Fields = make(map[string]*structpb.Value)
	}
	node.Metadata.Fields[metadataNode] = structpb.NewStringValue(nodeName)
	return node, corrected
}

// checkType lets Envoy's own types pass and no others.
func checkType(url string) error {
	if strings.HasPrefix(url, "type.googleapis.com/envoy.") {
		return nil
	}
	return status.Errorf(codes.InvalidArgument, "type %q: proxies get resources of type.googleapis.com/envoy.* only", url)
}
