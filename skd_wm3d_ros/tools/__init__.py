"""Programs around the node, none of which it needs: demonstration, bag player, bag evaluation, soak and overhead."""
